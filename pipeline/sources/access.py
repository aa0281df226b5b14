"""How yt-dlp goes online: cookies, proxy, extractor arguments and rate limit, each read by yt-dlp's own parser."""

import io
from contextlib import redirect_stderr
from http.cookiejar import CookieJar
from optparse import OptParseError
from pathlib import Path
from urllib.parse import urlsplit

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
            return load_cookies(file, browser, yt_dlp.YoutubeDL({"quiet": True, "no_warnings": True}))
    except CookieLoadError:
        where = f"--cookies {file}" if file is not None else f"--cookies-from-browser {browser[0]}"
        raise AvpipeError(f"{where}: yt-dlp cannot read these cookies; a file must be in Netscape format") from None


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
