"""The Python ancestor's client and dashboard, as far as the wire shows them, against a tracker.

    python3 ancestor.py http://127.0.0.1:8000
    python3 ancestor.py http://127.0.0.1:8000 silence    # a tracker whose thresholds are far below a second

Standard library only. Sends what the ancestor's HTTP client (httpx) sends, header by header: plain
JSON with a Content-Length, no Origin, no token, names quoted in paths. Needs a tracker that nobody
else uses. Exits with a message at the first difference.
"""

import http.client
import json
import sys
import threading
import time
import uuid
from datetime import datetime, timezone
from urllib.parse import quote, urlsplit

NOT_FOUND = {"detail": "Session not found"}
ROW = {
    "session_id", "app_name", "user_id", "start_time", "last_heartbeat", "duration_seconds",
    "status", "current_task", "is_stale", "kill_requested",
}


def encoded(body):
    """As newer versions of httpx do: no spaces, letters as UTF-8."""
    return json.dumps(body, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


class Server:
    """A keep-alive connection, like the ancestor's `httpx.Client`."""

    def __init__(self, url):
        parts = urlsplit(url)
        self.connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=10)

    def request(self, method, path, body=None, raw=None):
        data = raw if raw is not None else None if body is None else encoded(body)
        # http.client adds Host, and Accept-Encoding unless told; httpx sends a Content-Length of 0 with
        # a POST or PUT that has no body, and none with a GET or DELETE.
        headers = {"Accept": "*/*", "Accept-Encoding": "gzip, deflate", "Connection": "keep-alive",
                   "User-Agent": "python-httpx/0.27.0"}
        if data is not None:
            headers["Content-Type"] = "application/json"
        self.connection.request(method, path, body=data, headers=headers)
        answer = self.connection.getresponse()
        text = answer.read()
        assert answer.headers["Content-Type"] == "application/json", answer.headers.items()
        assert int(answer.headers["Content-Length"]) == len(text), answer.headers.items()
        assert "Content-Encoding" not in answer.headers, answer.headers.items()
        return answer.status, json.loads(text)

    def ok(self, method, path, body=None):
        status, answer = self.request(method, path, body)
        assert status == 200, (method, path, status, answer)
        return answer


class Client:
    """`session_client.py`: one tracked session."""

    def __init__(self, url, app_name, user_id=None):
        self.server = Server(url)
        body = {"app_name": app_name}
        if user_id is not None:
            body["user_id"] = user_id
        created = self.server.ok("POST", "/sessions", body)
        self.session_id = created["session_id"]
        uuid.UUID(self.session_id)

    def beat(self):
        answer = self.server.ok("POST", f"/sessions/{self.session_id}/heartbeat")
        assert isinstance(answer["kill_requested"], bool), answer
        return answer["kill_requested"]

    def status(self, status, current_task=None):
        body = {"status": status, "current_task": current_task}
        answer = self.server.ok("PUT", f"/sessions/{self.session_id}/status", body)
        assert answer == {"status": "updated"}, answer

    def task(self, name):
        """`with client.task("…")`: running, then idle."""
        return Task(self, name)

    def stop(self):
        answer = self.server.ok("DELETE", f"/sessions/{self.session_id}")
        assert answer == {"status": "deleted"}, answer
        self.server.connection.close()


class Task:
    def __init__(self, client, name):
        self.client, self.name = client, name

    def __enter__(self):
        self.client.status("running", self.name)

    def __exit__(self, *_):
        self.client.status("idle", None)


class Dashboard:
    """`monitor.py`: shows all sessions, cleans up on every poll, kills."""

    def __init__(self, url):
        self.server = Server(url)

    def load(self):
        cleaned = self.server.ok("DELETE", "/sessions/stale?older_than_minutes=10")
        assert set(cleaned) == {"deleted_count"} and cleaned["deleted_count"] == 0, cleaned
        listed = self.server.ok("GET", "/sessions")
        assert set(listed) == {"sessions"}, set(listed)
        for row in listed["sessions"]:
            check_row(row)
        return listed["sessions"]

    def row(self, session_id):
        return next((row for row in self.load() if row["session_id"] == session_id), None)

    def kill(self, session_id):
        answer = self.server.ok("POST", f"/sessions/{session_id}/kill")
        assert answer["status"] == "kill_requested", answer

    def kill_all(self, app_name):
        answer = self.server.ok("POST", f"/apps/{quote(app_name, safe='')}/kill-all")
        assert type(answer["killed_count"]) is int, answer
        return answer["killed_count"]


def check_row(row):
    """The columns that the dashboard's table and its model `Session` need, with their types."""
    assert ROW <= set(row), row
    for field in ("session_id", "app_name", "start_time", "last_heartbeat", "status"):
        assert type(row[field]) is str and row[field], row
    for field in ("user_id", "current_task"):
        assert row[field] is None or type(row[field]) is str, row
    for field in ("is_stale", "kill_requested"):
        assert type(row[field]) is bool, row
    assert type(row["duration_seconds"]) in (int, float) and row["duration_seconds"] >= 0, row
    start, beat = (datetime.fromisoformat(row[field]) for field in ("start_time", "last_heartbeat"))
    assert start.tzinfo is not None and beat >= start, row
    assert row["is_stale"] == (row["status"] == "stale"), row


def life_of_a_session(url, dashboard):
    before = datetime.now(timezone.utc)
    client = Client(url, "reports", "ann")
    assert client.beat() is False
    row = dashboard.row(client.session_id)
    assert (row["app_name"], row["user_id"]) == ("reports", "ann"), row
    assert (row["status"], row["current_task"]) == ("idle", None), row
    assert row["is_stale"] is False and row["kill_requested"] is False, row
    assert row["duration_seconds"] >= 0, row
    started = row["start_time"]
    for field in ("start_time", "last_heartbeat"):
        shown = datetime.fromisoformat(row[field])
        assert abs((shown - before).total_seconds()) < 60, row
    with client.task("Quarterly report"):
        row = dashboard.row(client.session_id)
        assert (row["status"], row["current_task"]) == ("running", "Quarterly report"), row
        beaten = row["last_heartbeat"]
    row = dashboard.row(client.session_id)
    assert (row["status"], row["current_task"]) == ("idle", None), row
    assert row["last_heartbeat"] >= beaten and row["start_time"] == started, row
    # A status without a task, as a body and as nothing.
    assert client.server.ok("PUT", f"/sessions/{client.session_id}/status", {"status": "running"})
    assert dashboard.row(client.session_id)["current_task"] is None
    dashboard.kill(client.session_id)
    dashboard.kill(client.session_id)
    assert dashboard.row(client.session_id)["kill_requested"] is True
    # It is told until it is gone, also while it reports what it does.
    assert client.beat() is True
    client.status("running", "cleaning up")
    assert client.beat() is True
    assert dashboard.row(client.session_id)["current_task"] == "cleaning up"
    client.stop()
    assert dashboard.row(client.session_id) is None


def gone_is_gone(url, dashboard):
    """After its end nothing of a session answers, and a late beat does not bring it back."""
    client = Client(url, "gone")
    session = f"/sessions/{client.session_id}"
    client.stop()
    for method, path, body in [
        ("DELETE", session, None),
        ("POST", f"{session}/heartbeat", None),
        ("PUT", f"{session}/status", {"status": "running", "current_task": "late"}),
        ("POST", f"{session}/kill", None),
    ]:
        assert dashboard.server.request(method, path, body) == (404, NOT_FOUND), (method, path)
    assert dashboard.row(client.session_id) is None
    assert dashboard.kill_all("gone") == 0


def what_the_models_let_pass(url, dashboard):
    """Members that the server's models do not know are ignored; names are kept as they are."""
    made = []
    for body in [
        {"app_name": "models", "user_id": None},
        {"app_name": "models", "user_id": "", "colour": "blue", "nested": {"a": [1, 2]}},
        {"app_name": " models ", "user_id": "größe \u0001 \U0001f40e"},
    ]:
        made.append(dashboard.server.ok("POST", "/sessions", body)["session_id"])
        row = dashboard.row(made[-1])
        assert (row["app_name"], row["user_id"]) == (body["app_name"], body.get("user_id")), row
    # Older versions of httpx write letters as escapes, with spaces.
    raw = json.dumps({"app_name": "models", "user_id": "größe"}).encode()
    code, answer = dashboard.server.request("POST", "/sessions", raw=raw)
    assert code == 200 and dashboard.row(answer["session_id"])["user_id"] == "größe", (code, answer)
    made.append(answer["session_id"])
    assert dashboard.kill_all("models") == 3
    for session_id in made:
        assert dashboard.server.ok("DELETE", f"/sessions/{session_id}") == {"status": "deleted"}


def a_connection_each(url, dashboard):
    """`httpx.post(…)` and the like open a connection for every request."""
    session_id = Client(url, "alone").session_id
    for _ in range(5):
        assert Server(url).ok("POST", f"/sessions/{session_id}/heartbeat") == {"kill_requested": False}
        assert any(row["session_id"] == session_id for row in Server(url).ok("GET", "/sessions")["sessions"])
    assert Server(url).ok("DELETE", f"/sessions/{session_id}") == {"status": "deleted"}


def unknown_routes(dashboard):
    assert dashboard.server.request("GET", "/nothing") == (404, {"detail": "Not Found"})
    assert dashboard.server.request("PUT", "/sessions", {}) == (405, {"detail": "Method Not Allowed"})


def kill_all_by_name(url, dashboard):
    names = ["plain", "two words", "team/app", "a/b/c", "größe", "尺寸", "100% & more?", "x#y", "..", "'; --"]
    for name in names:
        neighbour, clients = Client(url, name + "!"), [Client(url, name) for _ in range(3)]
        assert dashboard.kill_all(name) == 3, name
        assert [client.beat() for client in clients] == [True] * 3, name
        assert neighbour.beat() is False, name
        assert dashboard.row(clients[0].session_id)["app_name"] == name
        for client in [neighbour, *clients]:
            client.stop()
    assert dashboard.kill_all("nobody") == 0


def newest_first(url, dashboard):
    clients = []
    for _ in range(3):
        clients.append(Client(url, "order"))
        time.sleep(0.002)
    mine = [row["session_id"] for row in dashboard.load() if row["app_name"] == "order"]
    assert mine == [client.session_id for client in reversed(clients)], mine
    for client in clients:
        client.stop()


def unknown_ids(dashboard):
    for name in [str(uuid.uuid4()), "no-uuid", quote("a b/ü", safe="")]:
        for method, path, body in [
            ("DELETE", f"/sessions/{name}", None),
            ("POST", f"/sessions/{name}/heartbeat", None),
            ("PUT", f"/sessions/{name}/status", {"status": "idle"}),
            ("POST", f"/sessions/{name}/kill", None),
        ]:
            assert dashboard.server.request(method, path, body) == (404, NOT_FOUND), (method, path)


def bad_bodies(url, dashboard):
    client = Client(url, "bad bodies")
    status = f"/sessions/{client.session_id}/status"
    for method, path, raw in [
        ("POST", "/sessions", b""),
        ("POST", "/sessions", b"{"),
        ("POST", "/sessions", b"[]"),
        ("POST", "/sessions", b'"reports"'),
        ("POST", "/sessions", b'{"user_id": "ann"}'),
        ("POST", "/sessions", b'{"app_name": 7}'),
        ("POST", "/sessions", b'{"app_name": null}'),
        ("POST", "/sessions", b'{"app_name": "a", "user_id": 7}'),
        ("POST", "/sessions", b'{"app_name": "a"} trailing'),
        ("POST", "/sessions", b'{"app_name": "\xff"}'),
        ("PUT", status, b'{"current_task": "no status"}'),
        ("PUT", status, b'{"status": null}'),
        ("PUT", status, b'{"status": "idle", "current_task": 7}'),
        ("DELETE", "/sessions/stale?older_than_minutes=soon", None),
        ("DELETE", "/sessions/stale?older_than_minutes=", None),
    ]:
        code, answer = dashboard.server.request(method, path, raw=raw)
        assert code == 422 and isinstance(answer["detail"], str), (method, path, raw, code, answer)
    assert client.beat() is False
    client.stop()


def stale_clean_up(url, dashboard):
    client = Client(url, "stale")
    for parameter in ("", "?older_than_minutes=10", "?older_than_minutes=1", "?older_than_minutes=10&x=y"):
        assert dashboard.server.ok("DELETE", f"/sessions/stale{parameter}") == {"deleted_count": 0}
    # `stale` is no id, also when it is asked for like one.
    assert dashboard.server.request("POST", "/sessions/stale/heartbeat") == (404, NOT_FOUND)
    count = len(dashboard.load())
    cleaned = dashboard.server.ok("DELETE", "/sessions/stale?older_than_minutes=0")
    assert cleaned == {"deleted_count": count} and count >= 1, (cleaned, count)
    path = f"/sessions/{client.session_id}/heartbeat"
    assert dashboard.server.request("POST", path) == (404, NOT_FOUND)
    assert dashboard.load() == []
    # The ancestor's client would start anew; the new one is another session.
    again = Client(url, "stale")
    assert again.session_id != client.session_id and again.beat() is False
    again.stop()


def silence(url, dashboard):
    """What falls silent is shown as stale, and as what it was before with its next beat; the dashboard's
    clean-up then removes what stays silent."""
    client = Client(url, "silent", "ann")
    client.status("running", "a long computation")
    while not (row := dashboard.row(client.session_id))["is_stale"]:
        time.sleep(0.01)
    assert (row["status"], row["current_task"]) == ("stale", "a long computation"), row
    # A kill reaches whoever is only slow.
    dashboard.kill(client.session_id)
    assert client.beat() is True
    while not dashboard.row(client.session_id)["is_stale"]:
        time.sleep(0.01)
    assert dashboard.server.ok("DELETE", "/sessions/stale?older_than_minutes=0.0001") == {"deleted_count": 1}
    assert dashboard.load() == []
    beat = f"/sessions/{client.session_id}/heartbeat"
    assert dashboard.server.request("POST", beat) == (404, NOT_FOUND)


def many_at_once(url, dashboard):
    """Threads of one app, each with its own connection, as Panel sessions are."""
    heard, problems = [], []

    def app():
        try:
            client = Client(url, "crowd")
            client.status("running", "waiting for the kill")
            while not client.beat():
                time.sleep(0.01)
            heard.append(client.session_id)
            client.stop()
        except BaseException as problem:
            problems.append(problem)

    threads = [threading.Thread(target=app) for _ in range(20)]
    for thread in threads:
        thread.start()
    while not problems and sum(row["status"] == "running" for row in dashboard.load()) < 20:
        time.sleep(0.01)
    assert dashboard.kill_all("crowd") == 20 or problems
    for thread in threads:
        thread.join()
    assert not problems, problems
    assert len(set(heard)) == 20
    assert all(row["app_name"] != "crowd" for row in dashboard.load())


def main(url, what=None):
    dashboard = Dashboard(url)
    if what == "silence":
        silence(url, dashboard)
        print("the ancestor is content")
        return
    life_of_a_session(url, dashboard)
    gone_is_gone(url, dashboard)
    what_the_models_let_pass(url, dashboard)
    a_connection_each(url, dashboard)
    kill_all_by_name(url, dashboard)
    newest_first(url, dashboard)
    unknown_ids(dashboard)
    unknown_routes(dashboard)
    bad_bodies(url, dashboard)
    many_at_once(url, dashboard)
    stale_clean_up(url, dashboard)
    print("the ancestor is content")


if __name__ == "__main__":
    main(*sys.argv[1:])
