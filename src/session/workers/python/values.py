

# --- values -------------------------------------------------------------------------------------

# Exactly these types show nothing but their repr.
PLAIN = frozenset((float, list, dict, tuple, set, frozenset, complex, range, slice, type, type(load), type(len)))


def encode_value(value):
    """Flags and the two parts of a *result*."""
    kind = type(value)
    if value is None:
        return 0, b"", b""
    if kind is int and -(1 << 63) <= value < 1 << 64:
        text = b"%d" % value
        return HAS_VALUE | IS_JSON, text, text
    try:
        if kind is str:
            from _json import encode_basestring
            first = encode_basestring(value).encode("utf-8")
        elif kind is bool:
            first = b"true" if value else b"false"
        elif kind is bytes or kind is bytearray or kind is memoryview:
            return encode_bytes(value)
        else:
            if kind not in PLAIN:
                load()
                show_result(value)
            first = dump_json(value)
        flags = HAS_VALUE | IS_JSON
        if len(first) + REPR_CAP + 64 > frame_cap:
            flags, first = HAS_VALUE | TOO_LARGE, b"%d" % len(first)
    except Exception as error:
        flags, first = HAS_VALUE | NOT_JSON, text_bytes(brief(error))[:REPR_CAP]
    return flags, first, text_bytes(safe_repr(value))


def encode_bytes(value):
    first = bytes(value)
    shown = text_bytes(safe_repr(first if type(value) is bytes else value))
    if len(first) + len(shown) + 64 > frame_cap:
        return HAS_VALUE | TOO_LARGE, b"%d" % len(first), shown
    return HAS_VALUE | IS_BYTES, first, shown


def safe_repr(value):
    try:
        if type(value) in (str, bytes, bytearray) and len(value) > REPR_CAP:
            return repr(value[:REPR_CAP]) + "… (length %d)" % len(value)
        text = str.__str__(repr(value))
        if len(text) > REPR_CAP:
            text = text[:REPR_CAP] + "… (length %d)" % len(text)
        return text
    except Exception as error:
        return "<%s object, its repr failed: %s>" % (type_name(type(value)), brief(error))


# The name that a class was given: a metaclass may say something else, or raise.
type_name = type.__dict__["__name__"].__get__


def brief(error):
    try:
        return "%s: %s" % (type_name(type(error)), error)
    except Exception:
        return type_name(type(error))


def minimal_error(kind, failure):
    """An *error* body made without imports, for when memory or the import system is gone."""
    plain = "".join(c for c in kind if c.isalnum() or c == "_").encode("ascii", "replace").decode()
    limit = ',"limit":"data"' if kind == "MemoryError" else ""
    text = '{"type":"%s","message":"could not be described: %s","traceback":""%s}' % (plain, failure, limit)
    return text.encode()
