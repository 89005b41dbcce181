#!/usr/bin/env bash
# From vectors of your own to answers of your own model: train, judge, calibrate, promote, serve and ask.
#
#     bash examples/own_model.sh      # in a folder where `amn` and `python` are those of your environment
#
# It makes up a small set, and takes two minutes. With your own `vectors.npz` (docs/text-to-vectors.md has its
# columns), remove the first block and the two `--epochs`. docs/train-your-own.md explains each command.
set -euo pipefail

python - <<'EOF'
import numpy as np

draw = np.random.default_rng(0)
domains = np.repeat(["handbook", "manual", "forum"], [135, 135, 27])  # of 297 articles
rows = []
for domain in domains:
    topic = piece = draw.standard_normal(768)
    for _ in range(45):  # vectors of an article
        piece = 0.6 * topic + 0.6 * piece + draw.standard_normal(768)
        rows.append(piece / np.linalg.norm(piece))
article = np.repeat(np.arange(len(domains)), 45)
np.savez("vectors.npz", vectors=np.array(rows, dtype="f2"), article=article, article_domain=domains,
         encoder="my-encoder/mean/l2")
EOF

# Train AMN and the slower fallback on top of it, and judge both beside the mean of the context.
amn train --model amn --preset robust --epochs 2 --data vectors.npz --unseen-domain forum --out runs/amn
amn train --model stacked --preset robust --epochs 1 --storage float16 --first-stage runs/amn/checkpoint \
    --data vectors.npz --unseen-domain forum --out runs/stacked
amn evaluate runs/amn/checkpoint runs/stacked/checkpoint --data vectors.npz --out runs/report

# What confidence is measured against, which answers the fallback betters, and what counts as unknown text.
export AMN_ARTIFACTS=models
amn bank build vectors.npz --model runs/amn/checkpoint --count 2048 --out models/banks/first
amn calibrate runs/amn/checkpoint runs/stacked/checkpoint --bank models/banks/first --data vectors.npz \
    --out models/calibrations/first
amn slices --unseen-domain forum --data vectors.npz --out models/slices/first
ln -sfn slices/first models/ood_slices

# Move the links that workers follow. A model that is no better than the mean is refused.
amn promote runs/amn/checkpoint --calibration models/calibrations/first --bank models/banks/first
amn promote runs/stacked/checkpoint --link fallback_accuracy

# Serve, until this script ends.
amn up >up.log 2>&1 &
trap 'kill $!; wait' EXIT
until grep -q "Ctrl-C drains" up.log; do kill -0 $! || { cat up.log; exit 1; }; sleep 0.2; done

# Clients name the encoder of their vectors; another one is refused.
export REDIS_URL=unix://$PWD/var/amn/redis.sock AMN_ENCODER=my-encoder/mean/l2
python - <<'EOF'
import numpy as np
from producer import Producer

context = np.load("vectors.npz")["vectors"][:5].astype("f4")
with Producer() as producer:
    reply = producer.predict(context, normalize=True)
print("answered by", reply.model, "with confidence", round(reply.confidence, 2))
EOF
