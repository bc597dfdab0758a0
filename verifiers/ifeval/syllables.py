"""Syllables of an English word: groups of vowels, corrected for the words where that is wrong.

IFBench counts with SyllaPy 0.8. The rule is its rule; the words are those of its dictionary (6,400 entries) for
which the rule and the dictionary disagree. SyllaPy: MIT licence, copyright (c) 2018 Michael Holtzscher.
"""

from __future__ import annotations

import re

_CORRECTIONS = {
    -2: """
accurately actively approximately availability carefully closely completely deliberately desperately dramatically
effectively effectiveness exclusively flexibility fortunately housewares involvement precisely privately regulatory
routinely safely severely sometimes supposedly ultimately unfortunately
""",
    -1: """
absolutely achieved achievement acquired added addressed advanced advertisement aged agricultural aisle alleged
allowed announced announcement apparently approved armed arrangement arrived asked assumed attached authorized
awareness awesome babes balanced barely baseball based basement behavioral believed believes besides bigger biggest
bombing business businesses businessman bytes cached called captured careful caused centres changed changing charged
charles checked cleveland closed closest clothes codes combined comes compared compiled composed concerned confirmed
considered consistently constantly contained controlled convened convinced correctly covered customized dancing dates
declared defender defined definitely depending depressed derived described designed desired detailed determined
developed developmental differently dining discovered discussed drives driveway dropped earned ecological elsewhere
embarrassed emotionally encouraged encouraging enforcement engaged engagement enhanced entirely environmental equipped
essentially established estimated evening every everybody everyday everything everywhere excitement exclaimed existing
expected exposed extremely failed falsehood falsehoods fastened faster featured filed files filled finished firefox
fireplace firewall firmly fixed focused forced forecast forehead formed framed frames framework fucked funding games
gateway genes getting gives giving gloves grabbed grades grateful greatest guideline guides happened harder having
helped higher highest historically holes homeland homeless homes homework hopefully household importantly improved
improvement including increased increasingly induced informed initially inspired installed instructional introduced
invented investigator investor involved ireland ironically islamic jacksonville james joined jokes jones killed lakes
largely larger largest lately launched learned leaves legally licensed lifestyle lifetime liked likelihood likely
likewise lines linked listener lived lives logged lonely longer looked loved lovely loves machines makes managed
management managing manufacturing marked measured measurement melted merely michelle miles missed mixed modes moved
movement moves named names nashville nearer nearest nodded nodes nonetheless notebook notes noticed observed occurred
offender officially ones opened openly opposed ordered organizational organized ourselves owned partially passed
peaceful perceived performer personalized philippines phones picked pictured pipeline placed placement planned plates
pleased policeman politically powered preferred prepared priced printed processing produced programmes progressed
promised properly proposed purchased putting quotes raised rapidly rarely rates reached received recently recognized
redeemed reduced referred refused registered rehabilitation relatively released remaining removed repeatedly replaced
replacement reporting required requirement requirements researcher reserved respectively retailer retired retirement
revised roles roughly rubbed rules safety sales satellites saved scared scenes scheduled scores screeched sealed
secured seemed seemingly selected served serves shared shareholder shares shareware sharply shaved shinning shipped
shooting showed sides sidewalk signed significantly similarly sites sized skilled slightly slipped smaller smallest
socially softly solely somebody someday somehow something sometime somewhat somewhere specials spending spokesman
stared starting statement statements states steadily stepped stones stopped stored stores stronger styles
substantially successfully suddenly suites supposed surely surprised surprisingly surrounded takes tales testing
themes themselves thereby therefore tightly times tired tones tracked trademark trading traditionally trained
transferred treated turned types typically unlikely used useful using viewed votes voting wales warehouse waves
wednesday whispered wholesale widely widespread willingness wireless worked wrapped writes
""",
    1: """
actual actually adobe affiliate agree alliance anime annual antonio anxiety anyone apache appliances applying
appreciate appreciation appropriate area argue associate association audience audio austria avenue aviation bacteria
barrier being bestiality beyond bias bibliography biography biological biology brian bulgaria buyer buying cafe
canadian caribbean carrier carrying casual casualty centre champion championship chaos charlie chile christianity
client coalition coffee colombia colonial columbia committee compliance continue continuous cookie cooperate
cooperation cooperative coordinate coordinator create created creating creation creative creativity creator criteria
cruel curiosity curious degree denial diabetes diagnose diagnosis diagram dial dialogue diameter diary diego diet
disagree doing dual dying easier editorial employees employer employers encyclopedia enthusiasm european evaluate
evaluation eventually experience experiences february fluid flying fuel genre genuine geographic geography giant going
graduate graduation guarantee guardian hawaii historian idea ideal ideas identifying ideological ideology immediate
india indian indiana individual individuals industrial influence influential ingredient initiate initiative
intellectual interior intermediate iowa israel issue january jose korea korean layer layers layout lesbian liability
liable linear lingerie lion louis loyal loyalty lying manual maria marie material materials maybe mayor media median
medium memorabilia memorial miami milwaukee minneapolis miscellaneous montreal movie mpeg multimedia museum mutual
mysterious negotiate negotiation nike nominee nuclear nutrient obvious ohio ongoing ontario orientation oversee
palestinian paying period philadelphia piano pierre pioneer player playing poem poems poet poetry portfolio premium
previous prior priorities priority pursuant pursue quiet radiation radio react reaction real realistic reality realize
really recipe recipient reconcile reconciliation recreation refugee reinforce reliability reliable rescue revenue riot
ritual romania royal ruin ryan samuel saying scenario science sciences scientific scientist scientists seattle seeing
serial serious seriously sexual sexuality sierra situation skiing society sodium soviet spiritual stadium statue
stereo stereotype studio studios suicide superior taxpayer tennessee theater theological theology theoretical theory
tissue tokyo trial triangle triumph trying tutorial twentieth undergraduate underlying unusual usual vacuum valuable
value variable variation variety various venue via viagra victoria video vietnam violate violation violence violent
virtual virtually virtue visual voyage voyeur warrior whoever wyoming xbox
""",
    2: """
dvds employee faqs louisiana theatre
""",
    3: """
html http ieee misc mysql ncaa voip
""",
}
_CORRECTION = {word: difference for difference, words in _CORRECTIONS.items() for word in words.split()}
_VOWELS = re.compile(r"[aeiouy]+")


def count_syllables(word: str) -> int:
    """Number of syllables of a word without punctuation; 0 where it has a digit, as the reference has it.

    >>> [count_syllables(word) for word in ("table", "tree", "actually", "7th")]
    [2, 1, 4, 0]
    """
    word = word.lower()
    if not word or any(character.isdecimal() for character in word):
        return 0
    count = len(_VOWELS.findall(word)) - word.endswith("e")
    if word.endswith("le") and len(word) > 2 and word[-3] not in "aeiouy":
        count += 1
    return max(count, 1) + _CORRECTION.get(word, 0)
