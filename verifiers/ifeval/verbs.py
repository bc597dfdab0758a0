"""Whether a response starts with a verb, by word lists and endings.

IFBench asks nltk's trained part-of-speech tagger, whose weights must be downloaded. The lists agree with it on the
words that can only be verbs there (imperatives, forms of be, do and have, -ing and -ed forms) and ask the next word
about those that can also be nouns; docs/ifeval.md says what is known of the difference.
"""

from __future__ import annotations

from verifiers.ifeval.text_units import tokenize_words

_VERB_LIST = """
accept accomplish achieve acknowledge acquire activate adapt add adjust adopt advise allow amplify analyze analyse
announce anticipate apologize appear apply appoint appreciate approve arrange arrive ask assemble assess assign assume
assure attach attend avoid await awaken be bear become begin behold believe belong bend bind bite boast borrow break
breathe bring build bury buy calculate calm carry celebrate check cherish choose clarify classify clean collaborate
collect combine come commence communicate compare compile complete comply compose comprehend compute conceive
concentrate conclude configure confirm confront connect conquer consider consist construct consult consume contemplate
continue contribute convert convey convince cook coordinate correct craft create cultivate decide declare decorate
dedicate deepen define delay delegate delete deliver demonstrate depart depend depict derive describe deserve destroy
detect determine develop devote differ discard discover discuss display dispose dissolve distinguish distribute dive
divide do download draw drink earn eat educate elevate eliminate embark embrace emerge emphasize employ empower enable
encounter encourage endure engage enhance enjoy enroll ensure enter entertain establish evaluate evolve examine exceed
execute exhale exist expand expect explain explore express extend extract face facilitate fetch fill find finish fix
follow foster fulfil fulfill gather generate get give go grab grasp grow guess handle happen harness have hear help
hide hire identify ignite ignore illuminate imagine implement improve include incorporate increase indicate inform
initialize initiate inquire insert inspire install integrate introduce invent invest investigate invite involve join
journey keep know learn leave lend let list listen live locate lose maintain make manage master maximize meet memorize
merge minimize mix modify navigate negotiate notice obey observe obtain occur offer open optimize organize overcome
participate pay perform permit persist persuade plunge ponder pour pray prefer prepare preserve pretend prevent
prioritize proceed produce prohibit promote propose protect prove provide publish pursue put quit raise reach read
realize rearrange receive recognize recommend reconsider recruit reduce reflect refuse register reject rejoice relax
rely remain remember remind remove repeat replace reply require rescue research resolve respond restore retrieve reveal
revise rewrite rinse run save say schedule see seek seem select sell send serve share shine simplify sing sit solve
speak specify spend stand start stay stir strengthen strive submit succeed suggest summarize supply suppose survive
sustain swim take taste teach tell thank think thrive throw translate transform try understand unite unleash unlock
unveil update upgrade utilize validate verify visualize wait walk want wash weigh welcome wonder write
am is are was were been being did does done had has went came saw took made got gave knew thought told felt became left
brought began kept held wrote stood heard meant met ran paid sat spoke lay led read grew lost fell sent built
understood drew broke spent
"""
VERBS = frozenset(_VERB_LIST.split())
_AMBIGUOUS_LIST = """
act address aim answer attempt balance base benefit book brush call care cause change charge claim climb close color
comment contact contract control copy count cover cross cut dance deal debate demand design dream dress drive drop end
estimate exercise experience fight focus force form frame function guide hand head highlight hit hold hope host
influence interest issue judge jump kick lack land laugh lead lift light limit link load look love mark matter measure
mention mind mind move name need note number order outline pack paint pass plan plant play point practice present
press process program project promise purchase push question rank rate reason record regard relate release report
request rest result return review ride risk rule search sense set shape shift show sign sort sound store structure
study substitute support surprise switch talk target test time touch trace track trade train travel treat trust turn
use value view visit voice vote watch work worry
"""
AMBIGUOUS = frozenset(_AMBIGUOUS_LIST.split())
"""Verbs that are as often nouns: what follows decides."""
_AFTER_A_VERB = frozenset(
    {"a", "an", "the", "this", "that", "these", "those", "my", "your", "his", "her", "its", "our", "their", "me", "us"}
    | {"you", "him", "it", "them", "all", "each", "every", "any", "some", "both", "yourself", "up", "down", "out"}
)
_NOT_VERBS = frozenset(
    """anything everything nothing something morning evening king thing spring string ring wing during ceiling bed red
    indeed need seed feed speed hundred sacred naked breed weed greed""".split()  # noqa: SIM905
)


def starts_with_verb(response: str) -> bool:
    """Whether the first word reads as a verb.

    >>> [starts_with_verb(text) for text in ("Walk the dog.", "Walking helps.", "The dog walks.", "Plan a trip.")]
    [True, True, False, True]
    """
    tokens = [token.lower() for token in tokenize_words(response[:400])][:2]
    if not tokens:
        return False
    word, following = tokens[0], tokens[1] if len(tokens) > 1 else ""
    if word in _NOT_VERBS:
        return False
    if word in VERBS:
        return True
    if word in AMBIGUOUS:
        return following in _AFTER_A_VERB
    return len(word) > 4 and word.isalpha() and word.endswith(("ing", "ed"))
