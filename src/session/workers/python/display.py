

# --- display ------------------------------------------------------------------------------------

# The richest first; types that are not listed come before all of them, plain text is the last.
FORMS = (
    ("text/html", "_repr_html_"), ("image/svg+xml", "_repr_svg_"), ("image/png", "_repr_png_"),
    ("image/jpeg", "_repr_jpeg_"), ("text/markdown", "_repr_markdown_"), ("text/latex", "_repr_latex_"),
    ("application/json", "_repr_json_"),
)
RANKS = {name: rank for rank, (name, _) in enumerate(FORMS, 1)}
RANKS["text/plain"] = len(RANKS) + 1


def complain(what, error):
    try:
        sys.stderr.write("remuda: %s failed: %s\n" % (what, brief(error).replace("\n", " ")[:500]))
    except Exception:
        pass


def rich_forms(value):
    """MIME type to content, of what the type of `value` says about showing it. What fails is left
    out and named on stderr. (Asking the type, not the value: mocks have every attribute.)"""
    kind, forms = type(value), {}
    if getattr(kind, "_repr_mimebundle_", None) is not None:
        try:
            bundle = value._repr_mimebundle_()
            forms.update(bundle[0] if isinstance(bundle, tuple) else bundle or {})
        except Exception as error:
            complain("_repr_mimebundle_ of " + type_name(kind), error)
    for name, method in FORMS:
        if name not in forms and getattr(kind, method, None) is not None:
            try:
                content = getattr(value, method)()
            except Exception as error:
                complain("%s of %s" % (method, type_name(kind)), error)
                continue
            forms[name] = content[0] if isinstance(content, tuple) else content
    return forms


def encode_form(name, content):
    """Bytes of one form: text as UTF-8, images as they are or from base64, JSON from its value."""
    if isinstance(content, (bytes, bytearray, memoryview)):
        return bytes(content)
    if isinstance(content, str):
        if name.startswith("image/") and name != "image/svg+xml":
            return own("binascii").a2b_base64(content)
        if not (name == "application/json" or name.endswith("+json")):
            return text_bytes(content)
    return dump_json(content)


def send_display(forms, what, result=False):
    encoded = []
    for name, content in sorted(forms.items(), key=lambda form: RANKS.get(form[0], 0)):
        if content is not None:
            try:
                encoded.append((name, encode_form(name, content)))
            except Exception as error:
                complain("%s of %s" % (name, what), error)
    if encoded:
        head = {"types": [(name, len(data)) for name, data in encoded]}
        if result:
            head["result"] = True
        send_event(DISPLAY, 0, dump_json(head), b"".join(data for _, data in encoded))


def display(value, raw=False):
    """Shows a value in every form that it has (`_repr_html_` and the like). With `raw=True` the value
    is the bundle itself: a dict of MIME type to text, bytes or JSON."""
    if raw:
        forms = {str(name): content for name, content in value.items()}
    else:
        forms = rich_forms(value)
        forms.setdefault("text/plain", safe_repr(value))
    send_display(forms, type_name(type(value)))


def show_result(value):
    """Sends the forms of a trailing value; nothing of this may fail the execution."""
    try:
        forms = rich_forms(value)
        if forms:
            send_display(forms, type_name(type(value)), result=True)
    except Exception as error:
        complain("display of " + type_name(type(value)), error)


def show_figures():
    """Sends matplotlib's open figures and closes them."""
    pyplot = sys.modules.get("matplotlib.pyplot")
    try:
        numbers = pyplot.get_fignums()
    except Exception:
        # Half imported, or something else by that name.
        return
    if not numbers:
        return
    import io
    try:
        for number in numbers:
            file = io.BytesIO()
            pyplot.figure(number).savefig(file, format="png")
            send_display({"image/png": file.getvalue()}, "a figure")
    except Exception as error:
        complain("showing a figure", error)
    finally:
        forget_figures()


def forget_figures():
    """Closes them unseen: code that failed leaves its figures to nobody."""
    if "matplotlib.pyplot" in sys.modules:
        try:
            sys.modules["matplotlib.pyplot"].close("all")
        except Exception:
            pass


remuda.display = display
