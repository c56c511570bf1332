"""What the tracker's description cannot say, for schemathesis: see `.ci/full`."""

import itertools
import os
import re

import requests
import schemathesis

LONGEST_WAIT = 0.02
SOMEBODY = "0f8fad5b-d9cb-469f-a165-70867728950e"
turns = itertools.count()
own = requests.Session()
own.headers["Authorization"] = f"Bearer {os.environ['TRACKER_TOKEN']}"


def waits_shortly(query):
    """An answer that waits for its full time tells nothing more, and there are many."""
    try:
        if float(query.get("wait", 0)) > LONGEST_WAIT:
            query["wait"] = LONGEST_WAIT
    except (TypeError, ValueError):
        pass


def makes_sense_together(query):
    """A cursor cannot be made up, and goes with one order only; so does the beginning of an id."""
    if re.fullmatch(r"[0-9a-f]+", str(query.get("cursor"))):
        query["cursor"] = ""
    if query.get("id") and re.fullmatch(r"-?(app|user|start_time|last_heartbeat)", str(query.get("sort"))):
        query["sort"] = ""


def names_each_session_once(body):
    """No session may be in a batch twice."""
    beats = body.get("beats")
    seen = set()
    for number, beat in enumerate(beats if isinstance(beats, list) else []):
        name = beat.get("session_id") if isinstance(beat, dict) else None
        if isinstance(name, str):
            if name in seen:
                beat["session_id"] = f"{name} {number}"
            seen.add(name)


def means_somebody(case):
    """Every other session is one that there is: random ids are unknown to the tracker."""
    name = case.path_parameters.get("session_id")
    if case.meta.phase.name == "fuzzing" and isinstance(name, str) and next(turns) % 2:
        registration = {"app_name": "somebody", "session_id": SOMEBODY}
        url = case.operation.base_url.rstrip("/") + "/sessions"
        own.post(url, json=registration, timeout=5).raise_for_status()
        case.path_parameters["session_id"] = SOMEBODY


@schemathesis.hook
def before_call(_context, case, _arguments):
    if case.query:
        waits_shortly(case.query)
        makes_sense_together(case.query)
    if case.path_parameters:
        means_somebody(case)
    if case.path == "/heartbeats" and isinstance(case.body, dict):
        names_each_session_once(case.body)


@schemathesis.hook
def filter_query(context, query):
    """Parameters that no route has are ignored, as everywhere: to send some is no error."""
    known = {parameter.name for parameter in context.operation.query}
    return not query or known.issuperset(query)
