"""yt-dlp's network options: cookies, proxy, extractor arguments and rate limit, each parsed by yt-dlp itself."""

import io
import re
from contextlib import redirect_stderr
from http.cookiejar import CookieJar
from optparse import OptParseError
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

import yt_dlp
from yt_dlp.cookies import CookieLoadError, load_cookies

from avpipe.pipeline.core.errors import AvpipeError

# Command-line option, the same in avpipe and yt-dlp, and the YoutubeDL parameter that it sets.
PARAMETERS = {
    "cookies": "cookiefile",
    "cookies-from-browser": "cookiesfrombrowser",
    "proxy": "proxy",
    "extractor-args": "extractor_args",
    "limit-rate": "ratelimit",
}
HIDDEN = "***"
# An address in a string: scheme, user and password, host, and the rest.
ADDRESS = re.compile(r"([a-z][a-z0-9+.-]*://)(?:[^/\s@]*@)?([^/\s?#'\"<>]*)([^\s'\"<>)]*)", re.IGNORECASE)
QUERY = re.compile(r"\?[^\s'\"<>)]+")
# yt-dlp's `[site] id: `; for an unknown site the id is part of the address.
SITE_AND_ID = re.compile(r"^\[[\w:.+-]+\] .+?: ")
# Shorter secrets may be parts of other words.
TELLING_CHARACTERS = 3


def access_parameters(**texts: str | None) -> dict:
    """Return YoutubeDL parameters for the given options (names of PARAMETERS with '_' for '-'); {} for none.

    Raises AvpipeError for what yt-dlp does not understand; the message never repeats the value, which may be secret.
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
    if file is not None and not Path(file).is_file():  # yt-dlp would treat it as empty
        raise AvpipeError(f"--cookies {file}: there is no such file; export the browser's cookies into it first")
    return parameters


def load_cookie_jar(parameters: dict) -> CookieJar | None:
    """Load the cookies of file or browser, shared by all threads; None if neither was given.

    The file is only read: yt-dlp itself would rewrite it. Raises AvpipeError for unreadable cookies.
    """
    file, browser = parameters.get("cookiefile"), parameters.get("cookiesfrombrowser")
    if file is None and browser is None:
        return None
    try:
        with redirect_stderr(io.StringIO()):  # its warnings print the cookies
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
    """Return `text` with the proxy's address, user and password masked."""
    proxy = parameters.get("proxy")
    if not proxy:
        return text
    parts = urlsplit(proxy)
    secrets = [proxy, parts.netloc, parts.password or ""]
    for secret in filter(None, secrets):
        text = text.replace(secret, HIDDEN)
    return text


def public_template(template: str) -> str:
    """Return an address template without user, password and query values, which may be secret."""
    try:
        parts = urlsplit(template)
    except ValueError:
        return without_address(template)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="…" if parts.query else "").geturl()


def without_address(text: str, url: str = "") -> str:
    """Return `text` with addresses reduced to their host: user, password, path and query of `url` may be secret."""
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
