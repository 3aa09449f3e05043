#!/usr/bin/env bash
# COCO, from its published files to scored captions of the 5,000 validation images: the setting of the ReCap paper.
# Downloads 20 GB, and the models ViT-B/32 and GPT-2 from their hubs. Run it again after any stop: it goes on.
set -euo pipefail

DATA=coco                                        # what is downloaded
OUT=coco-recap                                   # what is made
CLIP=ViT-B-32:openai
LANGUAGE_MODEL=gpt2
ADDRESS=http://images.cocodataset.org

# 1. The published files: captions (241 MB), training images (18 GB) to fit the map on, validation images (1 GB).
mkdir -p "$DATA"
for name in annotations/annotations_trainval2017 zips/train2017 zips/val2017; do
  zip="$DATA/$(basename "$name").zip"
  if [ ! -e "$zip.done" ]; then
    curl --fail --location --continue-at - --output "$zip" "$ADDRESS/$name.zip"
    unzip -q -o "$zip" -d "$DATA"
    touch "$zip.done"
  fi
done

# 2. The map from image to caption space, fitted on the training pairs.
recap-ray fit-alignment --pairs "$DATA/annotations/captions_train2017.json" --image-root "$DATA/train2017" \
  --clip "$CLIP" --output "$OUT/alignment"

# 3. The captions to retrieve from: those of the training images.
recap-ray build-index --captions "$DATA/annotations/captions_train2017.json" --clip "$CLIP" --output "$OUT/index"

# 4. Captions of images that none of this has seen.
recap-ray caption --images "$DATA/val2017" --alignment "$OUT/alignment" --index "$OUT/index" \
  --clip "$CLIP" --language-model "$LANGUAGE_MODEL" --output "$OUT/captions"

# 5. Is every picture there once? How good are they? What do they look like?
recap-ray verify --captions "$OUT/captions" --images "$DATA/val2017"
recap-ray evaluate --captions "$OUT/captions" --references "$DATA/annotations/captions_val2017.json" --retrieval \
  --output "$OUT/scores.json"
recap-ray report --captions "$OUT/captions" --output "$OUT/gallery.html"
