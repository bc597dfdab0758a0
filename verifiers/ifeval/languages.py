"""Codes and English names of the languages that the detector knows."""

from __future__ import annotations

NAMES: dict[str, str] = {
    "af": "Afrikaans", "ar": "Arabic", "bg": "Bulgarian", "bn": "Bengali", "ca": "Catalan", "cs": "Czech",
    "cy": "Welsh", "da": "Danish", "de": "German", "el": "Greek", "en": "English", "es": "Spanish",
    "et": "Estonian", "fa": "Persian", "fi": "Finnish", "fr": "French", "gu": "Gujarati", "he": "Hebrew",
    "hi": "Hindi", "hr": "Croatian", "hu": "Hungarian", "id": "Indonesian", "it": "Italian", "ja": "Japanese",
    "kn": "Kannada", "ko": "Korean", "lt": "Lithuanian", "lv": "Latvian", "mk": "Macedonian", "ml": "Malayalam",
    "mr": "Marathi", "ne": "Nepali", "nl": "Dutch", "no": "Norwegian", "pa": "Punjabi", "pl": "Polish",
    "pt": "Portuguese", "ro": "Romanian", "ru": "Russian", "sk": "Slovak", "sl": "Slovenian", "so": "Somali",
    "sq": "Albanian", "sv": "Swedish", "sw": "Swahili", "ta": "Tamil", "te": "Telugu", "th": "Thai",
    "tl": "Tagalog", "tr": "Turkish", "uk": "Ukrainian", "ur": "Urdu", "vi": "Vietnamese",
    "zh-cn": "Simplified Chinese", "zh-tw": "Traditional Chinese",
}  # fmt: skip
"""langdetect's 55 codes (ISO 639-1, and two for Chinese)."""

_BY_NAME = {name.casefold(): code for code, name in NAMES.items()} | {"chinese": "zh", "farsi": "fa", "filipino": "tl"}


def language_code(language: str) -> str | None:
    """The detector's code for a code or an English name, "zh" for Chinese of either script, None if it knows neither.

    >>> language_code("German"), language_code("PT"), language_code("Klingon")
    ('de', 'pt', None)
    """
    wanted = language.strip().casefold()
    return wanted if wanted in NAMES or wanted == "zh" else _BY_NAME.get(wanted)
