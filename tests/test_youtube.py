"""yt-dlp: what its messages mean for the ledger, and options that it knows."""

import re

import pytest
import yt_dlp
from yt_dlp.extractor.youtube import YoutubeIE

from pipeline.download import BLOCKS
from pipeline.ledger import PERMANENT, REASONS
from pipeline.youtube import FORMAT, MESSAGES, YOUTUBE, YOUTUBE_PACE, classify, options

OTHER = "http://127.0.0.1/{clip_id}.mp4"
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
    "Unable to download webpage: HTTP Error 404: Not Found (caused by <HTTPError 404: Not Found>)",
    "Unable to download webpage: HTTP Error 410: Gone (caused by <HTTPError 410: Gone>)",
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
]
NETWORK = [
    "unable to download video data: HTTP Error 403: Forbidden",
    "Unable to download webpage: HTTP Error 500: Internal Server Error (caused by <HTTPError 500>)",
    "Unable to download API page: HTTP Error 503: Service Unavailable",
    "Unable to download API page: [Errno 104] Connection reset by peer (caused by TransportError(...))",
    "Unable to download webpage: ('Connection aborted.', RemoteDisconnected('Remote end closed connection'))",
    "Unable to download webpage: [Errno -3] Temporary failure in name resolution",
    "[download] Got error: 1000 bytes read, 4000 more expected. Giving up after 3 retries",
]
TIMEOUT = [
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
    "timeout": TIMEOUT,
    "disk": ["unable to write data: [Errno 28] No space left on device"],
    "unknown": ["The page needs to be reloaded.", "This live event will begin in 3 hours.", ""],
}
CASES = [(message, reason) for reason, messages in TABLE.items() for message in messages]


@pytest.mark.parametrize(("message", "reason"), CASES)
def test_a_message_has_its_reason_whatever_stands_before_it(message, reason):
    assert classify(message) == reason
    assert classify(f"ERROR: {VIDEO}{message}") == reason


@pytest.mark.parametrize("message", [message for message, reason in CASES if reason not in ("removed", "private")])
def test_what_is_not_a_dead_video_can_be_tried_again(message):
    assert classify(message) not in PERMANENT


@pytest.mark.parametrize("message", [*BOT, *LIMITED, *SETUP, *TABLE["disk"]])
@pytest.mark.parametrize(
    "other", ["Video unavailable. ", "HTTP Error 404: Not Found. ", "This video has been removed. "]
)
def test_a_block_beside_a_message_of_removal_is_still_a_block(message, other):
    assert classify(other + message) in BLOCKS
    assert classify(f"{message}. {other}") in BLOCKS


def test_every_message_is_reachable_and_gives_a_reason_of_the_ledger():
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


@pytest.mark.parametrize("template", [YOUTUBE, OTHER])
def test_every_option_is_a_parameter_of_yt_dlp(template):
    assert set(options(template)) <= known_parameters()
    assert "sleep_intervall" not in known_parameters()


def test_the_pace_is_that_of_yt_dlps_sleep_preset():
    preset = yt_dlp.parse_options(["-t", "sleep"]).ydl_opts
    assert {name: preset[name] for name in YOUTUBE_PACE} == YOUTUBE_PACE


def test_only_youtube_is_asked_slowly():
    assert options(YOUTUBE).items() >= YOUTUBE_PACE.items()
    assert not any("sleep" in name for name in options(OTHER))
    assert options(YOUTUBE).keys() - options(OTHER).keys() == YOUTUBE_PACE.keys()


def test_the_address_of_a_video_is_one_that_yt_dlp_takes_for_youtube():
    for youtube_id in ("zpWuikVorYg", "-aB3_xyzXYZ"):
        assert YoutubeIE.get_temp_id(YOUTUBE.format(youtube_id=youtube_id)) == youtube_id


PROGRESSIVE = {"format_id": "18", "height": 360, "acodec": "mp4a", "vcodec": "avc1"}
PICTURE_360 = {"format_id": "134", "height": 360, "acodec": "none", "vcodec": "avc1"}
PICTURE_1080 = {"format_id": "137", "height": 1080, "acodec": "none", "vcodec": "avc1"}
SOUND = {"format_id": "140", "acodec": "mp4a", "vcodec": "none"}
PLAIN = {"format_id": "0"}


@pytest.mark.parametrize(
    ("formats", "chosen"),
    [
        ([SOUND, PICTURE_360, PROGRESSIVE, PICTURE_1080], "18"),
        ([SOUND, PICTURE_360, PICTURE_1080], "134+140"),
        ([PLAIN], "0"),
    ],
)
def test_a_small_file_with_picture_and_sound_is_chosen(formats, chosen):
    formats = [{"url": "http://x", "ext": "mp4", "protocol": "http"} | one for one in formats]
    with yt_dlp.YoutubeDL({"quiet": True}) as client:
        found = client.build_format_selector(FORMAT)(
            {"formats": formats, "has_merged_format": True, "incomplete_formats": False}
        )
        assert [one["format_id"] for one in found] == [chosen]
