"""yt-dlp: what its messages mean for the ledger, and options that it knows."""

import re
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from types import SimpleNamespace

import pytest
import yt_dlp
from server import Answer, serve
from yt_dlp.extractor.youtube import YoutubeIE
from yt_dlp.globals import supported_js_runtimes
from yt_dlp.networking.exceptions import HTTPError
from yt_dlp.utils import GeoRestrictedError

from avpipe.pipeline.core.errors import AvpipeError
from avpipe.pipeline.core.ledger import PERMANENT, REASONS
from avpipe.pipeline.download.access import PARAMETERS, access_parameters, load_cookie_jar
from avpipe.pipeline.download.js_runtime import find_runtime
from avpipe.pipeline.download.pacing import KINDS, YOUTUBE_PACE
from avpipe.pipeline.download.source import UrlSource, open_source
from avpipe.pipeline.download.youtube import (
    FORMAT,
    MESSAGES,
    YOUTUBE,
    Downloader,
    classify,
    is_youtube,
    options,
    retry_after_s,
)
from avpipe.pipeline.media import MediaError

BLOCKS = {reason for reason, kind in KINDS.items() if kind == "blocks"}
VIDEO = "[youtube] zpWuikVorYg: "
COOKIES = (
    "Use --cookies-from-browser or --cookies for the authentication. See "
    "https://github.com/yt-dlp/yt-dlp/wiki/FAQ#how-do-i-pass-cookies-to-yt-dlp for how to manually pass cookies"
)
LATER = (
    "Video unavailable. This content isn't available, try again later. The current session has been rate-limited by "
    "YouTube for up to an hour. It is recommended to use `-t sleep` to add a delay between video requests"
)
REMOVED = [
    "Video unavailable",
    "Video unavailable. This video is no longer available because the YouTube account associated with this video has "
    "been terminated.",
    "Video unavailable. This video has been removed by the uploader",
    "This video has been removed for violating YouTube's Terms of Service",
    "This video is no longer available due to a copyright claim by SME",
]
GEO = [
    "The uploader has not made this video available in your country",
    "Video unavailable. The uploader has not made this video available in your country",
    "Video unavailable. This video contains content from SME, who has blocked it in your country on copyright grounds",
    "This video is not available from your location due to geo restriction",
]
AGE = [
    f"Sign in to confirm your age. This video may be inappropriate for some users. {COOKIES}",
    "This video is age-restricted and only available on YouTube. Learn more",
]
BOT = [
    f"Sign in to confirm you’re not a bot. {COOKIES}",
    f"Sign in to confirm you're not a bot. {COOKIES}",
    "Video unavailable. YouTube is requiring a captcha challenge before playback",
    f"Please sign in. {COOKIES}",
]
LIMITED = [
    LATER,
    "Unable to download API page: HTTP Error 429: Too Many Requests (caused by <HTTPError 429: Too Many Requests>)",
]
SETUP = [
    "Requested format is not available. Use --list-formats for a list of available formats",
    "Only images are available for download. use --list-formats to see them",
    "You have requested merging of multiple formats but ffmpeg is not installed. Aborting due to --abort-on-error",
    "Postprocessing: ffmpeg not found. Please install or provide the path using --ffmpeg-location",
    "Postprocessing: ffprobe and ffmpeg not found. Please install or provide the path using --ffmpeg-location",
    "Unsupported URL: http://127.0.0.1/page.html",
    "The page needs to be reloaded.",
    "This video is DRM protected",
    "The following content is not available on this app. Watch on the latest version of YouTube.",
]
NETWORK = [
    "Unable to download webpage: HTTP Error 404: Not Found (caused by <HTTPError 404: Not Found>)",
    "Unable to download webpage: HTTP Error 410: Gone (caused by <HTTPError 410: Gone>)",
    "unable to download video data: HTTP Error 403: Forbidden",
    "Unable to download webpage: HTTP Error 500: Internal Server Error (caused by <HTTPError 500>)",
    "Unable to download API page: HTTP Error 503: Service Unavailable",
    "Unable to download API page: [Errno 104] Connection reset by peer (caused by TransportError(...))",
    "Unable to download webpage: ('Connection aborted.', RemoteDisconnected('Remote end closed connection'))",
    "Unable to download webpage: [Errno -3] Temporary failure in name resolution",
    "[download] Got error: 1000 bytes read, 4000 more expected. Giving up after 3 retries",
    "Unable to download API page: The read operation timed out (caused by TransportError('The read operation ...'))",
    "unable to download video data: HTTPSConnectionPool(host='r1.googlevideo.com', port=443): Read timed out.",
    "Connection to www.youtube.com timed out. (connect timeout=30.0)",
]
TABLE = {
    "removed": REMOVED,
    "private": ["Private video. Sign in if you've been granted access to this video. " + COOKIES],
    "geo_blocked": GEO,
    "age_gate": AGE,
    "bot_check": BOT,
    "rate_limited": LIMITED,
    "setup": SETUP,
    "network": NETWORK,
    "disk": [
        "unable to write data: [Errno 28] No space left on device",
        "unable to write data: [Errno 122] Disk quota exceeded",
    ],
    "unknown": ["This live event will begin in 3 hours.", ""],
}


@pytest.mark.parametrize("reason", TABLE)
def test_a_message_has_its_reason_whatever_stands_before_it(reason):
    for message in TABLE[reason]:
        assert (classify(message), classify(f"ERROR: {VIDEO}{message}")) == (reason, reason), message
    assert (reason in PERMANENT) == (reason in ("removed", "private"))  # all others can be tried again


def test_a_block_beside_a_message_of_removal_is_still_a_block():
    for message in [*BOT, *LIMITED, *SETUP, *TABLE["disk"]]:
        for other in ("Video unavailable. ", "HTTP Error 404: Not Found. ", "This video has been removed. "):
            assert classify(other + message) in BLOCKS
            assert classify(f"{message}. {other}") in BLOCKS


def test_every_message_is_reachable_and_gives_a_reason_of_the_ledger():
    # The type of an error counts where its message says nothing.
    assert classify("Das Video ist hier nicht zu sehen", GeoRestrictedError("x")) == "geo_blocked"
    for number, (text, reason) in enumerate(MESSAGES):
        assert reason in REASONS
        assert text == text.lower()
        assert not any(earlier in text for earlier, _ in MESSAGES[:number])


def test_the_messages_that_yt_dlp_recognises_itself_stand_in_its_source():
    """If yt-dlp rewords what the rate limit and the captcha say, this table has to be looked at again."""
    constants, functions = set(), [YoutubeIE._real_extract.__code__]
    while functions:
        for constant in functions.pop().co_consts:
            if isinstance(constant, str):
                constants.add(constant)
            elif hasattr(constant, "co_consts"):
                functions.append(constant)
    text = " ".join(constants)
    assert "This content isn't available, try again later" in text
    assert "requiring a captcha challenge" in text


def known_parameters() -> set[str]:
    """Parameters of YoutubeDL: those that its command line sets, and those its documentation describes."""
    documented = re.findall(r"^ {4}(\w+): ", yt_dlp.YoutubeDL.__doc__, re.MULTILINE)
    return set(yt_dlp.parse_options([]).ydl_opts) | set(documented)


ACCESS = {
    "cookies_from_browser": "firefox:profile",
    "proxy": "socks5://user:secret@127.0.0.1:9",
    "extractor_args": "youtube:player_client=web,tv;po_token=web+abc",
    "limit_rate": "500K",
}


def test_every_option_is_a_parameter_of_yt_dlp(tmp_path):
    (tmp_path / "cookies.txt").touch()
    access = access_parameters(cookies=str(tmp_path / "cookies.txt"), **ACCESS)
    assert set(access) == set(PARAMETERS.values())
    for youtube in (True, False):
        assert set(options(youtube, access) | find_runtime().options()) <= known_parameters()
    assert "sleep_intervall" not in known_parameters()


def test_what_is_passed_through_is_what_yt_dlp_makes_of_it():
    access = access_parameters(cookies=None, **ACCESS)
    assert access == {
        "cookiesfrombrowser": ("firefox", "profile", None, None),
        "proxy": ACCESS["proxy"],
        "extractor_args": {"youtube": {"player_client": ["web", "tv"], "po_token": ["web+abc"]}},
        "ratelimit": 512_000,
    }
    assert options(True, access).items() >= access.items()


def test_what_yt_dlp_does_not_understand_is_a_sentence_without_the_text(capsys):
    for option in ("limit_rate", "cookies_from_browser", "extractor_args"):
        with pytest.raises(AvpipeError, match=f"the value of --{option.replace('_', '-')}") as error:
            access_parameters(**{option: "my-secret"})
        assert "secret" not in str(error.value) + "".join(capsys.readouterr())


def test_cookies_are_read_shared_and_never_shown_or_written(tmp_path, capsys):
    file = tmp_path / "cookies.txt"
    with pytest.raises(AvpipeError, match="there is no such file"):
        access_parameters(cookies=str(file))
    file.write_text("# Netscape HTTP Cookie File\nbroken secret line\n127.0.0.1\tFALSE\t/\tFALSE\t0\tname\tsecret\n")
    before = file.read_text()
    access = access_parameters(cookies=str(file))
    assert [cookie.value for cookie in load_cookie_jar(access)] == ["secret"]
    assert file.read_text() == before
    file.write_text("secret")
    with pytest.raises(AvpipeError, match="Netscape format"):
        load_cookie_jar(access)
    assert "secret" not in "".join(capsys.readouterr())


def test_a_proxy_that_fails_is_a_set_up_fault_and_its_password_is_never_told(tmp_path):
    downloader = Downloader(False, access_parameters(proxy="http://user:secret@127.0.0.1:1"))
    with pytest.raises(MediaError) as error:
        downloader.fetch("http://127.0.0.1:2/secret.mp4", tmp_path)
    assert error.value.reason == "setup"
    assert "secret@" not in error.value.detail and "user" not in error.value.detail


def test_youtube_alone_is_asked_slowly_at_the_pace_of_yt_dlps_sleep_preset():
    preset = yt_dlp.parse_options(["-t", "sleep"]).ydl_opts
    assert options(True, {})["sleep_interval_requests"] == preset["sleep_interval_requests"] == YOUTUBE_PACE.request_s
    assert (preset["sleep_interval"], preset["max_sleep_interval"]) == YOUTUBE_PACE.video_s
    assert options(False, {})["sleep_interval_requests"] == 0
    assert open_source("youtube").pace == YOUTUBE_PACE
    assert UrlSource("https://m.youtube.com/watch?v={youtube_id}").pace == YOUTUBE_PACE
    assert UrlSource("https://example.org/youtube.com/{clip_id}").pace.mean_video_s == 0
    assert not is_youtube("https://notyoutube.com/x") and is_youtube("https://youtu.be/x")


def with_runtimes(monkeypatch, **infos):
    """The machine has these runtimes: name=(version, supported)."""
    for name in supported_js_runtimes.value:
        version, supported = infos.get(name, (None, None))
        info = version and SimpleNamespace(name=name, path=f"/opt/{name}", version=version, supported=supported)
        runtime = type("Runtime", (), {"__init__": lambda self, path=None: None, "info": info})
        runtime.MIN_SUPPORTED_VERSION = (9, 8, 7)
        monkeypatch.setitem(supported_js_runtimes.value, name, runtime)


@pytest.mark.parametrize(
    ("infos", "chosen"),
    [
        ({"deno": ("2.9.8", True), "node": ("24.1.0", True)}, "deno"),
        ({"deno": ("1.0.0", False), "node": ("20.0.0", False), "bun": ("1.3.0", True)}, "bun"),
        ({"quickjs": ("2025-01-01", True)}, "quickjs"),
    ],
)
def test_the_first_supported_runtime_is_chosen(monkeypatch, infos, chosen):
    with_runtimes(monkeypatch, **infos)
    runtime = find_runtime()
    assert runtime.options() == {"js_runtimes": {chosen: {"path": f"/opt/{chosen}"}}}
    assert f"{chosen} {infos[chosen][0]}" in str(runtime)


def test_without_a_runtime_youtube_is_not_asked_and_other_hosts_are(monkeypatch):
    with_runtimes(monkeypatch, node=("20.20.2", False))
    with pytest.raises(AvpipeError, match=r"set-up: node 20\.20\.2 is too old.*pip install deno.*node 9\.8\.7"):
        open_source("youtube").prepare(lambda: False)
    assert UrlSource("http://127.0.0.1/{clip_id}").prepare(lambda: False) == ""


def test_the_runtime_of_this_machine_is_one_that_yt_dlp_takes():
    with yt_dlp.YoutubeDL({"quiet": True} | find_runtime().options()) as client:
        (runtime,) = client._js_runtimes.values()
        assert runtime.info.supported


def test_retry_after_is_a_number_or_a_date():
    hour = format_datetime(datetime.now(UTC) + timedelta(hours=1))
    for header, seconds in {"30": 30, hour: 3600, "": None, "soon": None, None: None}.items():
        headers = {} if header is None else {"Retry-After": header}
        cause = HTTPError(SimpleNamespace(status=429, reason="", headers=headers))
        assert retry_after_s(cause) == (seconds and pytest.approx(seconds, abs=60))


def test_a_download_that_never_ends_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr("avpipe.pipeline.download.youtube.MAX_VIDEO_BYTES", 100_000)
    with (
        serve({"/x.mp4": Answer(body=bytes(1_000_000))}) as server,
        pytest.raises(MediaError, match="more than 100,000"),
    ):
        Downloader(False, {}).fetch(f"{server.address}/x.mp4", tmp_path)


def test_the_address_of_a_video_is_one_that_yt_dlp_takes_for_youtube():
    for youtube_id in ("zpWuikVorYg", "-aB3_xyzXYZ"):
        assert YoutubeIE.get_temp_id(YOUTUBE.format(youtube_id=youtube_id)) == youtube_id


PROGRESSIVE = {"format_id": "18", "height": 360, "acodec": "mp4a", "vcodec": "avc1"}
PICTURE_360 = {"format_id": "134", "height": 360, "acodec": "none", "vcodec": "avc1"}
PICTURE_1080 = {"format_id": "137", "height": 1080, "acodec": "none", "vcodec": "avc1"}
SOUND = {"format_id": "140", "acodec": "mp4a", "vcodec": "none"}
PLAIN = {"format_id": "0"}


def test_a_small_file_with_picture_and_sound_is_chosen():
    for some, chosen in (
        ([SOUND, PICTURE_360, PROGRESSIVE, PICTURE_1080], "18"),
        ([SOUND, PICTURE_360, PICTURE_1080], "134+140"),
        ([PLAIN], "0"),
    ):
        formats = [{"url": "http://x", "ext": "mp4", "protocol": "http"} | one for one in some]
        about = {"formats": formats, "has_merged_format": True, "incomplete_formats": False}
        with yt_dlp.YoutubeDL({"quiet": True}) as client:
            assert [one["format_id"] for one in client.build_format_selector(FORMAT)(about)] == [chosen]
