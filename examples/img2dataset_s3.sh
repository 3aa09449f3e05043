#!/usr/bin/env bash
# Tars that img2dataset wrote to S3 (or MinIO), captioned in place: nothing is copied to this machine but a part at a
# time. Schedule it: each run captions the tars that came since the last one. On a cluster: docs/cluster.md.
set -euo pipefail

IMAGES=s3://my-bucket/images                     # 00000.tar, 00001.tar, ... as img2dataset names them
OUT=s3://my-bucket/captions
ALIGNMENT=s3://my-bucket/alignment               # from fit-alignment
INDEX=s3://my-bucket/index                       # from build-index
CLIP=ViT-B-32:openai
LANGUAGE_MODEL=gpt2

# Access as for any S3 tool: a role, ~/.aws, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY. For MinIO also:
# export AWS_ENDPOINT_URL=http://minio:9000

# How such tars are made, once there is a table of addresses (pip install img2dataset):
#   img2dataset --url_list urls.parquet --input_format parquet --url_col url --caption_col caption \
#     --output_format webdataset --output_folder "$IMAGES" --image_size 384 --resize_only_if_bigger True

# 1. Caption what has no caption yet. Keys are those of the tars; their .txt becomes original_caption.
recap-ray caption --images "$IMAGES" --alignment "$ALIGNMENT" --index "$INDEX" \
  --clip "$CLIP" --language-model "$LANGUAGE_MODEL" --output "$OUT"

# 2. Every picture once? Exit code 1 and a list if not.
recap-ray verify --captions "$OUT" --images "$IMAGES"

# 3. Many small files become few of 512 MiB, which later runs go on with.
recap-ray compact --captions "$OUT" --target-mb 512

# 4. Still every picture once.
recap-ray verify --captions "$OUT" --images "$IMAGES"
