"""How yt-dlp goes online: cookies, proxy, extractor arguments and rate limit, each read by yt-dlp's own parser."""

import io
import re
from contextlib import redirect_stderr
from http.cookiejar import CookieJar
from optparse import OptParseError
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

import yt_dlp
from yt_dlp.cookies import CookieLoadError, load_cookies

from pipeline.errors import AvpipeError

# Command-line option, avpipe's and yt-dlp's alike, and the parameter of YoutubeDL that it becomes.
PARAMETERS = {
    "cookies": "cookiefile",
    "cookies-from-browser": "cookiesfrombrowser",
    "proxy": "proxy",
    "extractor-args": "extractor_args",
    "limit-rate": "ratelimit",
}
HIDDEN = "***"
# An address in a text: scheme, user and password, host, and the rest.
ADDRESS = re.compile(r"([a-z][a-z0-9+.-]*://)(?:[^/\s@]*@)?([^/\s?#'\"<>]*)([^\s'\"<>)]*)", re.IGNORECASE)
QUERY = re.compile(r"\?[^\s'\"<>)]+")
# yt-dlp's `[site] id: `, where the id of an address that it does not know is a piece of it.
SITE_AND_ID = re.compile(r"^\[[\w:.+-]+\] .+?: ")
# Shorter ones may be parts of other words.
TELLING_CHARACTERS = 3


def access_parameters(**texts: str | None) -> dict:
    """Parameters of YoutubeDL for the options given (names of PARAMETERS with '_' for '-'); {} for none.

    Raises AvpipeError for what yt-dlp does not understand; the sentence never repeats the text, which may be secret.
    """
    parameters = {}
    for name, text in texts.items():
        if text is None:
            continue
        option = name.replace("_", "-")
        try:
            parsed = yt_dlp.parse_options([f"--{option}={text}"]).ydl_opts
        except (OptParseError, ValueError):
            raise AvpipeError(f"yt-dlp does not understand the value of --{option}; see `yt-dlp --help`") from None
        parameters[PARAMETERS[option]] = parsed[PARAMETERS[option]]
    file = parameters.get("cookiefile")
    if file is not None and not Path(file).is_file():  # yt-dlp would take it for an empty one
        raise AvpipeError(f"--cookies {file}: there is no such file; export the browser's cookies into it first")
    return parameters


def load_cookie_jar(parameters: dict) -> CookieJar | None:
    """The cookies of file or browser, to be shared by all threads; None where neither was given.

    The file is only read: yt-dlp on its own would write it anew. Raises AvpipeError for cookies that cannot be read.
    """
    file, browser = parameters.get("cookiefile"), parameters.get("cookiesfrombrowser")
    if file is None and browser is None:
        return None
    try:
        with redirect_stderr(io.StringIO()):  # its warnings show the cookies
            jar = load_cookies(file, browser, yt_dlp.YoutubeDL({"quiet": True, "no_warnings": True}))
    except CookieLoadError:
        where = f"--cookies {file}" if file is not None else f"--cookies-from-browser {browser[0]}"
        raise AvpipeError(f"{where}: yt-dlp cannot read these cookies; a file must be in Netscape format") from None
    if file is not None and not len(jar):
        raise AvpipeError(
            f"--cookies {file}: no line of it is a cookie, seven fields with a tab between them (an editor or a copy "
            "may have made blanks of the tabs); export the browser's cookies again"
        )
    return jar


def without_secrets(text: str, parameters: dict) -> str:
    """`text` with the proxy's address, user and password blotted out."""
    proxy = parameters.get("proxy")
    if not proxy:
        return text
    parts = urlsplit(proxy)
    secrets = [proxy, parts.netloc, parts.password or ""]
    for secret in filter(None, secrets):
        text = text.replace(secret, HIDDEN)
    return text


def public_template(template: str) -> str:
    """A template for addresses without user, password and the values of its query, which may be secret."""
    try:
        parts = urlsplit(template)
    except ValueError:
        return without_address(template)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="…" if parts.query else "").geturl()


def without_address(text: str, url: str = "") -> str:
    """`text` with no more of any address than its host: user, password, path and query of `url` may be secret."""
    text = SITE_AND_ID.sub("", text)
    text = ADDRESS.sub(lambda match: match[1] + match[2] + ("/…" if len(match[3]) > 1 else match[3]), text)
    text = QUERY.sub("?…", text)
    parts = urlsplit(url)
    secrets = [parts.query, parts.path, parts.username, parts.password, *(value for _, value in parse_qsl(parts.query))]
    for secret in filter(None, secrets):
        for form in {secret, unquote(secret)}:
            if len(form) >= TELLING_CHARACTERS:
                text = text.replace(form, HIDDEN)
    return text
