# ruff: noqa: RUF001  (curly quotes and long dashes are what is tested)
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recap_ray.metrics.ngram import ptb_tokenize
from recap_ray.metrics.tokenizer import REMOVED, tokenize

# What the Java tokenizer makes of each: the second test holds this table to it, the first holds ours to the table.
EXPECTED = {
    "Two Dogs, one cat; and a bird!": "two dogs one cat and a bird",
    "He doesn't, can't and WON'T; it's the dogs' ball, they've won.": (
        "he does n't ca n't and wo n't it 's the dogs ball they 've won"
    ),
    "I'm sure she'll say we'd go. You're late": "i 'm sure she 'll say we 'd go you 're late",
    "shouldn't've y'all's": "should n't 've y' all 's",
    "Get 'em 'til 'tis the '90s, 'cause 'twas 'n' in '05": "get 'em 'til 't is the '90s 'cause 't was 'n' in '05",
    "rock 'n' roll, rock'n'roll at 5 o'clock": "rock 'n' roll rock 'n' roll at 5 o'clock",
    "O'Neil ate d'oeuvres, ma'am, in Hawai'i; c'mon": "o'neil ate d'oeuvres ma'am in hawai'i c'mon",
    "He cannot, gonna, wanna, gotta, lemme, gimme": "he can not gon na wan na got ta lem me gim me",
    "cannot's gonna's cannots": "cannot 's gonna 's cannots",
    "It’s a man’s hat, they don’t see ’em": "it 's a man 's hat they do n't see ’em",
    "the ’man’ of s’mores": "the 'm an of s 'm ores",
    "A t-shirt, a 20-year-old, black-and-white - well -known- x-": (
        "a t-shirt a 20-year-old black-and-white well known x"
    ),
    "one--two --- three – four—five ----- end": "one two three four five ----- end",
    "Mr. Smith, Mrs. Jones and Dr. Who on Main St. in town etc.": (
        "mr. smith mrs. jones and dr. who on main st. in town etc."
    ),
    "the U.S. flag at 5 a.m. in L.A. by J. Crew, e.g. the Ph.D. one": (
        "the u.s. flag at 5 a.m. in l.a. by j. crew e.g. the ph.d. one"
    ),
    "U.S.-made, anti-U.S. and u.s": "u.s.-made anti-u.s. and u.s",
    "No. 5 is the answer, no. It is fig. 3 of fig. x": "no. 5 is the answer no it is fig. 3 of fig x",
    "A vitamin A. The plan b. and x": "a vitamin a the plan b. and x",
    "one dog., two dogs.": "one dog. two dogs",
    "Jan. Feb. Sat. Mon. Mass. mass. cOS.": "jan. feb. sat mon. mass. mass cos.",
    "In the yard.The dog is by foo.jpg of example.com.": "in the yard.the dog is by foo.jpg of example.com",
    "1,000.50 and 3/4 at 10:30, .5 of -5 or +1 and 1,5": "1,000.50 and 3/4 at 10:30 .5 of -5 or +1 and 1,5",
    "the 3rd 5ft 1.5l 10:30pm 4x4 2x 50mm": "the 3rd 5ft 1.5 l 10:30 pm 4x4 2x 50mm",
    "5-6 of 1999-2000, 10/05/2012, 2012-10-05, 24/7 and 1/2-mile": (
        "5-6 of 1999-2000 10/05/2012 2012-10-05 24/7 and 1/2-mile"
    ),
    "he/she and/or w/o a/b/c/d w/ x": "he/she and/or w/o a/b/c / d w / x",
    'a 12" by 5\'6" board': "a 12 by 5 6 board",
    "\"Stop,\" he said; 'go now' ``tick'' “curly” ‘single’ «other»": "stop he said go now tick curly single other",
    "A man (left) and [right] {brace}": "a man -lrb- left -rrb- and -lsb- right -rsb- -lcb- brace -rcb-",
    "wait... what.. and .... … end": "wait what and end",
    "what?! no!! yes??? hm? ok!": "what ?! no !! yes ??? hm ok",
    "mail me@example.com or http://www.example.com/a?b=c, www.foo.org.": (
        "mail me@example.com or http://www.example.com/a?b=c www.foo.org"
    ),
    "see www.site.com/a_b, www.foo.org/x. or www.a.com/": "see www.site.com/a_b www.foo.org / x. or www.a.com /",
    "@user likes #dogs and # 1": "@user likes #dogs and # 1",
    "AT&T, Q&A, salt&pepper, a & b &amp; c &lt; AT&amp;T's": "at&t q&a salt & pepper a & b & c < at&t 's",
    "$20.50 US$5 £5 €10 ¢5 50% A$ b$": "$ 20.50 us$ 5 # 5 $ 10 cents 5 50 % a$ b $",
    "½ cup, 5° and m² × ™ ♥": "1/2 cup 5 ° and m ² × ™ ♥",
    "a_b __init__ _x ____": "a_b __ init __ _ x ____",
    '<b>bold</b> <a href="x y"> x < y <3 <unk>': '<b> bold </b> <a\u00a0href="x\u00a0y"> x < y < 3 <unk>',
    "<!-- a b --> x <!doctype> </p > <a@b.com> 5": "<!--\u00a0a\u00a0b\u00a0--> x <!doctype> </p\u00a0> <a@b.com> 5",
    "j'ai J'ai d' l'a l'eau y'a d'5": "j' ai j'ai d' l' a l'eau y' a d' 5",
    "hi :) ;-) :D :] 8)": "hi :-rrb- ;--rrb- :d :] 8 -rrb-",
    "a 😀 dog❤️ and \U0001f9d1\u200d\U0001f9b0 café naïve Übung": "a dog ❤ and café naïve übung",
    "* ** *** ~~ ^ | \\ = + ## @@": "* ** *** ~ ~ ^ | \\ = + ## @@",
    "a\tb  c \u00a0 d": "a b c d",
    "": "",
    "... ! ' \" - --": "",
}


@pytest.mark.parametrize("caption", EXPECTED)
def test_a_caption_is_cut_by_the_documented_rules(caption):
    assert " ".join(tokenize(caption)) == EXPECTED[caption]


@pytest.mark.skipif(shutil.which("java") is None, reason="no java on the PATH")
def test_the_java_tokenizer_cuts_the_same_captions_alike():
    pytest.importorskip("pycocoevalcap")
    # A dash between them, for the Java tokenizer looks ahead into the next line.
    lines = [line for caption in EXPECTED for line in (caption, "-")]
    assert dict(zip(EXPECTED, ptb_tokenize(lines)[::2], strict=True)) == EXPECTED


@given(st.text() | st.text(alphabet="aTn's’.,-_/&:;()<>@#$%!?\"5 \n½€é", max_size=30))
def test_no_text_makes_it_fail_or_give_removed_punctuation_spaces_or_empty_tokens(text):
    tokens = tokenize(text)
    assert not [t for t in tokens if not t or t in REMOVED or " " in t or "\n" in t]


@given(st.text(alphabet=st.characters(min_codepoint=97, max_codepoint=122), min_size=1))
def test_no_letter_of_plain_words_is_lost(word):
    assert "".join(tokenize(word)) == word
