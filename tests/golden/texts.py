"""Texts that are easy to get wrong, and such that are drawn: `TEXTS`."""

import random

_WRITTEN = (
  'a photo of a cat',
  "A  Photo&amp;  of 2 cats! it's",
  '',
  ' ',
  '\t\n',
  '!',
  'a',
  'A' * 300,
  'hello_world, {}.',
  "they're WE'LL i'd you've i'm don't rock'n'roll",
  "'s",
  "it'\u017f",
  '12345 3.14',
  'caf\u00e9',
  'cafe\u0301',
  'caf\u00c3\u00a9',
  'schön \u00e2\u20ac\u0153quoted\u00e2\u20ac\u009d',
  '\u201ccurly\u201d \u2018quotes\u2019',
  'ﬁne ﬂower',
  'ＦＵＬＬ ｗｉｄｔｈ',
  'İstanbul ΣΊΣΥΦΟΣ Straße',
  '日本語のテキスト',
  '한국어 텍스트',
  'مرحبا بالعالم',
  'שלום עולם',
  'हिन्दी पाठ',
  '😀👍🏽👨\u200d👩\u200d👧',
  '🇩🇪',
  '½ ² Ⅷ ٣',
  'zero\u200bwidth',
  'soft\u00adhyphen',
  'non\u00a0breaking\u2003space',
  'a\x00b',
  'a\x0bb\x1cc\x7fd',
  '\x1b[36;44mcoloured\x1b[0m',
  'line\r\nbreak\rhere',
  '\u2028sep\u2029',
  '&lt;b&gt; &amp;amp;amp;lt; &EACUTE; &notanentity; &#128512;',
  '<a href="x">&amp;</a>',
  '\ud800',
  'a\udc00b',
  '\ud83d\ude00',
  '\ufffd',
  '\ufeffmark',
  'https://example.com/a?b=c&d=e',
  '...!!!???',
  '----',
  'x1y2z3',
  'supercalifragilisticexpialidocious',
  'the ' * 200,
  'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa',
  'abababababababab',
  '\u0301',
  '𝒜𝓃𝒸𝒾𝑒𝓃𝓉',
  'ǅ ǆ',
  '\U000e0001tag',
  '\u202eright to left',
)
_ALPHABETS = (
  'abcdefghij klmnop qrstuvwxyz',
  'AbC dE. ,!?-\'"()',
  '0123456789 .,',
  '  \t\n\r\x0b\x0c\u00a0\u2003',
  'éàüßñçøåœ ',
  'абвгд ежзи',
  'αβγδΣς ',
  'مرحبا ',
  '日本語漢字かな',
  '😀👍🏽\u200d❤️',
  '&amp;lt#39; ',
  'Ã©â€œ™Â ',
  '\x00\x01\x07\x1b[m',
  '\u0301\u0308e\u0327c',
  '\u2018\u2019\u201c\u201d',
  '\ud800\udc00\udfffa',
  '½²ⅧⅨ٣५',
)


def _drawn(rng):
  letters = ''.join(rng.choice(_ALPHABETS) for _ in range(rng.randint(1, 4)))
  return ''.join(rng.choice(letters) for _ in range(rng.randint(1, 60)))


def _all():
  rng = random.Random(0)
  return (*_WRITTEN, *(_drawn(rng) for _ in range(200)))


TEXTS = _all()
