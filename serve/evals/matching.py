"""When a short answer equals its reference, by the rule of VideoLLaMA2 for MUSIC-AVQA and by a lenient one."""


def matches(reply: str, answer: str) -> bool:
    """Whether they are equal, but for case, and blanks and full stops at the reply's end; an empty reply never is."""
    reply = reply.rstrip(" .")
    return reply != "" and reply.upper() == answer.upper()


def matches_leniently(reply: str, answer: str) -> bool:
    """As `matches`, but blanks and line ends around the reply are ignored too, and "_" is a blank on both sides."""
    return matches(reply.strip().rstrip(" .").strip().replace("_", " "), answer.replace("_", " "))
