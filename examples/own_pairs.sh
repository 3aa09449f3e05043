#!/usr/bin/env bash
# Your own pictures in your own words: a table of some hundred captioned pictures is enough to fit the map on, and its
# captions give the style. The table, with tabs between:
#
#   image              caption
#   shop/0001.jpg      a green enamel teapot on a white table
set -euo pipefail

PAIRS=pairs.tsv                                  # paths relative to this file's folder
PHOTOS=photos                                    # what is to be captioned
OUT=own
CLIP=ViT-B-32:openai
LANGUAGE_MODEL=gpt2

# 1. The map for this kind of pictures. With few pairs --method auto may find that none is best.
recap-ray fit-alignment --pairs "$PAIRS" --clip "$CLIP" --output "$OUT/alignment"

# 2. The index holds your captions, so that retrieved ones are in your words. More captions than pictures do it good.
recap-ray build-index --captions "$PAIRS" --clip "$CLIP" --output "$OUT/index"

# 3. More candidates than by default, for CLIP to choose among.
recap-ray caption --images "$PHOTOS" --alignment "$OUT/alignment" --index "$OUT/index" --candidates 16 \
  --clip "$CLIP" --language-model "$LANGUAGE_MODEL" --output "$OUT/captions"

# 4. Look at them: pictures, captions, neighbours and scores on one page.
recap-ray report --captions "$OUT/captions" --output "$OUT/gallery.html"
