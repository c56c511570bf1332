"""The Python ancestor's client and dashboard, as far as the wire shows them, against a tracker.

    python3 ancestor.py http://127.0.0.1:8000

Standard library only. Sends what the ancestor's HTTP client sends: plain JSON with a Content-Length,
no Origin, no token, names quoted in paths. Exits with a message at the first difference.
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


class Server:
    """A keep-alive connection, like the ancestor's `httpx.Client`."""

    def __init__(self, url):
        parts = urlsplit(url)
        self.connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=10)

    def request(self, method, path, body=None, raw=None):
        data = raw if raw is not None else None if body is None else json.dumps(body).encode()
        headers = {} if data is None else {"Content-Type": "application/json"}
        self.connection.request(method, path, body=data, headers=headers)
        answer = self.connection.getresponse()
        text = answer.read()
        assert answer.headers["Content-Type"] == "application/json", answer.headers.items()
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

    def stop(self):
        answer = self.server.ok("DELETE", f"/sessions/{self.session_id}")
        assert answer == {"status": "deleted"}, answer


class Dashboard:
    """`monitor.py`: shows all sessions, cleans up on every poll, kills."""

    def __init__(self, url):
        self.server = Server(url)

    def load(self):
        cleaned = self.server.ok("DELETE", "/sessions/stale?older_than_minutes=10")
        assert set(cleaned) == {"deleted_count"} and cleaned["deleted_count"] == 0, cleaned
        rows = self.server.ok("GET", "/sessions")["sessions"]
        for row in rows:
            assert ROW <= set(row), row
        return rows

    def row(self, session_id):
        return next((row for row in self.load() if row["session_id"] == session_id), None)

    def kill(self, session_id):
        answer = self.server.ok("POST", f"/sessions/{session_id}/kill")
        assert answer["status"] == "kill_requested", answer

    def kill_all(self, app_name):
        return self.server.ok("POST", f"/apps/{quote(app_name, safe='')}/kill-all")["killed_count"]


def life_of_a_session(url, dashboard):
    before = datetime.now(timezone.utc)
    client = Client(url, "reports", "ann")
    assert client.beat() is False
    row = dashboard.row(client.session_id)
    assert (row["app_name"], row["user_id"]) == ("reports", "ann"), row
    assert (row["status"], row["current_task"]) == ("idle", None), row
    assert row["is_stale"] is False and row["kill_requested"] is False, row
    assert row["duration_seconds"] >= 0, row
    for field in ("start_time", "last_heartbeat"):
        shown = datetime.fromisoformat(row[field])
        assert abs((shown - before).total_seconds()) < 60, row
    client.status("running", "Quarterly report")
    row = dashboard.row(client.session_id)
    assert (row["status"], row["current_task"]) == ("running", "Quarterly report"), row
    client.status("idle")
    row = dashboard.row(client.session_id)
    assert (row["status"], row["current_task"]) == ("idle", None), row
    dashboard.kill(client.session_id)
    assert dashboard.row(client.session_id)["kill_requested"] is True
    assert client.beat() is True
    client.stop()
    assert dashboard.row(client.session_id) is None


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
        ("POST", "/sessions", b'{"app_name": "\xff"}'),
        ("PUT", status, b'{"current_task": "no status"}'),
        ("PUT", status, b'{"status": null}'),
        ("DELETE", "/sessions/stale?older_than_minutes=soon", None),
    ]:
        code, answer = dashboard.server.request(method, path, raw=raw)
        assert code == 422 and isinstance(answer["detail"], str), (method, path, raw, code, answer)
    assert client.beat() is False
    client.stop()


def stale_clean_up(url, dashboard):
    client = Client(url, "stale")
    assert dashboard.server.ok("DELETE", "/sessions/stale") == {"deleted_count": 0}
    count = len(dashboard.load())
    cleaned = dashboard.server.ok("DELETE", "/sessions/stale?older_than_minutes=0")
    assert cleaned == {"deleted_count": count} and count >= 1, (cleaned, count)
    path = f"/sessions/{client.session_id}/heartbeat"
    assert dashboard.server.request("POST", path) == (404, NOT_FOUND)


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


def main(url):
    dashboard = Dashboard(url)
    life_of_a_session(url, dashboard)
    kill_all_by_name(url, dashboard)
    newest_first(url, dashboard)
    unknown_ids(dashboard)
    bad_bodies(url, dashboard)
    many_at_once(url, dashboard)
    stale_clean_up(url, dashboard)
    print("the ancestor is content")


if __name__ == "__main__":
    main(sys.argv[1])
