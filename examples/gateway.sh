#!/usr/bin/env bash
# Asks a gateway by each of its routes, with curl. Beside `amn up` and `amn gateway --port 9466`, in a checkout:
#
#     bash examples/gateway.sh
#
# It leaves context.json, infer.json, truth.json and context.bin, which other clients may send too.
set -euo pipefail
gateway=${GATEWAY:-http://127.0.0.1:9466}
json='Content-Type: application/json'
ask() { curl -sS --fail-with-body "$@" | cut -c 1-150; }

.venv/bin/python - <<'EOF'
import json
import numpy as np

rows = np.load("artifacts/sample/sequences.npz")["vectors"][:5].astype("f4")  # five vectors, oldest first
rows /= np.linalg.norm(rows, axis=1, keepdims=True)
tensor = {"name": "context", "datatype": "FP32", "shape": [5, 768], "data": rows.ravel().tolist()}
infer = {"inputs": [tensor], "outputs": [{"name": "confidence"}, {"name": "served_by"}, {"name": "vector"}]}
json.dump({"context": rows.tolist()}, open("context.json", "w"))
json.dump(infer, open("infer.json", "w"))
json.dump({"request_id": "row-17", "vector": rows[4].tolist()}, open("truth.json", "w"))
open("context.bin", "wb").write(rows.tobytes())
EOF

echo "# Would a request be answered?"
ask $gateway/v2/health/ready
echo "# One context, plainly"
ask $gateway/predict -H "$json" -d @context.json
echo "# The Open Inference Protocol, in JSON"
ask $gateway/v2/models/amn/infer -d @infer.json
echo "# The same with a binary tensor behind the JSON, which costs least"
head='{"inputs":[{"name":"context","datatype":"FP32","shape":[5,768],"parameters":{"binary_data_size":15360}}],
  "outputs":[{"name":"confidence"}],"parameters":{"request_id":"row-17","lane":"code-api","deadline_ms":2000}}'
{ printf %s "$head"; cat context.bin; } |
    ask $gateway/v2/models/amn/infer -H "Inference-Header-Content-Length: ${#head}" --data-binary @-
echo "# The vector that really came next, for the drift judge"
ask $gateway/truth -H "$json" -d @truth.json
echo "# A mistake: the answer says what is wrong, with status 400"
curl -sS $gateway/predict -H "$json" -d '{"context": [1, 2]}'
echo
echo "# Metrics"
curl -sS $gateway/metrics | grep '^amn_gateway_requests_total' | sort
