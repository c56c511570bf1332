"use strict";

const REFRESH = 10000;

async function refresh() {
  const message = document.getElementById("message");
  try {
    const answer = await fetch("sessions");
    const { sessions } = await answer.json();
    document.getElementById("sessions").replaceChildren(...sessions.map(row));
    message.textContent = `${sessions.length} sessions`;
  } catch (error) {
    message.textContent = `The tracker does not answer: ${error.message}`;
  }
}

function row(session) {
  const line = document.createElement("tr");
  const age = `${Math.round(session.beat_age_seconds)} s ago`;
  for (const text of [session.session_id, session.app_name, session.user_id ?? "", session.status,
    session.current_task ?? "", age]) {
    line.insertCell().textContent = text;
  }
  const button = document.createElement("button");
  button.textContent = session.kill_requested ? "kill requested" : "Kill";
  button.disabled = session.kill_requested;
  button.addEventListener("click", () => kill(session.session_id));
  line.insertCell().append(button);
  return line;
}

async function kill(id) {
  await fetch(`sessions/${encodeURIComponent(id)}/kill`, { method: "POST" });
  await refresh();
}

refresh();
setInterval(refresh, REFRESH);
