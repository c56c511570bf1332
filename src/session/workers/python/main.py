
start(globals().get("LATE"))
