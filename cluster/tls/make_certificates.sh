#!/usr/bin/env bash
# Encryption and passwords for scheduler, workers and clients: one authority, one key, the settings.
#
#   cluster/tls/make_certificates.sh ~/.dpipe-tls          once; then, in every shell and on every host:
#   export DASK_CONFIG=~/.dpipe-tls/dask.yaml
#   dask scheduler --protocol tls
#   dask worker tls://HOST:8786
#   dpipe run data/ --output-dir out --scheduler tls://HOST:8786
#
# Whoever has the folder may use the cluster, and nobody else: copy it to your hosts with scp, keep it
# readable for you alone. DAYS says how long the certificates are good for.
set -euo pipefail

folder=${1:?say which folder to write}
DAYS=${DAYS:-365}
umask 077
mkdir -p -- "$folder"
folder=$(cd -- "$folder" && pwd)
if [ -e "$folder/ca.pem" ]; then
    echo "$folder has certificates already; give another folder, or remove it first." >&2
    exit 2
fi

key() { openssl genpkey -quiet -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$1"; }

key "$folder/ca-key.pem"
openssl req -x509 -new -key "$folder/ca-key.pem" -days "$DAYS" -subj "/CN=dpipe authority" \
    -addext "basicConstraints=critical,CA:TRUE" -addext "keyUsage=critical,keyCertSign,cRLSign" \
    -out "$folder/ca.pem"
key "$folder/key.pem"
openssl req -new -key "$folder/key.pem" -subj "/CN=dpipe" |
    openssl x509 -req -CA "$folder/ca.pem" -CAkey "$folder/ca-key.pem" -CAcreateserial \
        -days "$DAYS" -out "$folder/cert.pem" 2>/dev/null
# Nothing is signed after this, so nobody else can be.
rm -f -- "$folder/ca-key.pem" "$folder/ca.srl"

cat >"$folder/dask.yaml" <<SETTINGS
distributed:
  comm:
    require-encryption: true
    default-scheme: tls
    tls:
      ca-file: $folder/ca.pem
      scheduler: {cert: $folder/cert.pem, key: $folder/key.pem}
      worker: {cert: $folder/cert.pem, key: $folder/key.pem}
      client: {cert: $folder/cert.pem, key: $folder/key.pem}
SETTINGS
echo "export DASK_CONFIG=$folder/dask.yaml"
