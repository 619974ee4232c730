#!/usr/bin/env bash
# The main job on a real cluster: kubelet, containerd, CNI, the images from the Dockerfile, daemonset/ as it stands, the
# README's own commands, unchanged SDKs in pods. Exit code 77 and the reason in the first line: it cannot run here.
set -euo pipefail

if [[ $(stat -fc %T /sys/fs/cgroup) != tmpfs ]]; then
    echo "e2e SKIPPED: the test cluster's nodes need cgroup version 1, and this machine has version 2"
    exit 77
elif ((EUID)); then
    echo "e2e SKIPPED: the test cluster's nodes need root"
    exit 77
fi

cd "$(dirname "$0")/.."
export CLUSTER_NAME=${CLUSTER_NAME:-e2e} CLUSTER_SUBNET=${CLUSTER_SUBNET:-172.30.136}
export CLUSTER_STATE=${CLUSTER_STATE:-/var/tmp/rolecall-$CLUSTER_NAME}
export KUBECONFIG=$CLUSTER_STATE/kubeconfig
out=$CLUSTER_STATE/e2e
cluster=tests/cluster
emulator=

step() { printf '%4ds  %s\n' "$SECONDS" "$*"; }
fail() { printf 'FAILED: %s\n' "$*" >&2; exit 1; }
# Nothing here takes minutes, and the documented commands have no deadline of their own.
kubectl() { timeout 180 "$CLUSTER_STATE/bin/kubectl" "$@"; }
on_node() { "$cluster/on-node" 1 "$@"; }

finish() {
    local code=$?
    if ((code)); then
        kubectl get pods -A -o wide || true
        for pod in $(kubectl -n rolecall-example get pods -o name); do kubectl -n rolecall-example logs "$pod" --prefix --tail=10 || true; done
        kubectl -n rolecall logs -l app.kubernetes.io/name=rolecall --all-containers --prefix --tail=30 || true
        [[ ! -s $out/emulator.log ]] || tail -20 "$out/emulator.log"
    fi >&2
    [[ -z $emulator ]] || kill "$emulator" 2>/dev/null || true
    [[ -n ${E2E_KEEP:-} ]] || "$cluster/down"
    exit "$code"
}
trap finish EXIT

# expect WHAT PATTERN COMMAND...: the command's output has the pattern
expect() {
    local what=$1 pattern=$2 output
    shift 2
    output=$("$@" 2>&1) || true
    grep -qE -- "$pattern" <<<"$output" || fail "$what: no $pattern in: $output"
    step "$what"
}

# documented HEADING: run the first block of commands under a heading of daemonset/README.md
documented() {
    local commands
    commands=$(awk -v heading="## $1" '$0 == heading {on = 1; next} /^#/ {on = 0} on && /^    / {print; seen = 1} on && seen && !/^    / {exit}' daemonset/README.md)
    [[ -n $commands ]] || fail "daemonset/README.md has no commands under $1"
    eval "$commands"
}

# What the node has of its own: addresses and links but for those of pods, nftables tables but for those of the iptables program,
# and what has our name in /run.
node_state() {
    on_node ip -o address show | awk '$2 !~ /^(veth|cni)/ {print $2, $3, $4}'
    on_node ip -o link show | awk '$2 !~ /^(veth|cni)/ {print $2}'
    on_node nft list tables | grep -vE '^table ip6? (nat|mangle|filter)$' || true
    on_node find /run -maxdepth 1 -name '*rolecall*'
}

# start_pod NAME SERVICE_ACCOUNT [MORE-OF-ITS-SPEC] -- COMMAND...: a pod that carries the label
start_pod() {
    local name=$1 spec='"serviceAccountName": "'$2'"'
    shift 2
    while [[ $1 != -- ]]; do spec+=", $1"; shift; done
    kubectl -n rolecall-example run "$name" --quiet --image="$whoami" --restart=Never --labels=rolecall.dev/inject=true \
        --env="AWS_ENDPOINT_URL_STS=$sts" --overrides="{\"spec\": {$spec}}" ${PRIVILEGED:+--privileged} --command "$@" >/dev/null
}

# in_pod NAME SERVICE_ACCOUNT COMMAND...: run in such a pod, and print what it prints
in_pod() {
    local name=$1 account=$2
    shift 2
    start_pod "$name" "$account" -- "$@"
    printed "$name"
}

# printed NAME: wait for the pod's end, and print what it has printed
printed() {
    local name=$1
    kubectl -n rolecall-example wait pod/"$name" --timeout=60s --for=jsonpath='{.status.containerStatuses[0].state.terminated.reason}' >/dev/null
    kubectl -n rolecall-example logs "$name"
    kubectl -n rolecall-example get pod "$name" -o jsonpath='ended: {.status.containerStatuses[0].state.terminated.reason}'
}

# pod NAME PATH: a field of the pod
pod() { kubectl -n rolecall-example get pod "$1" -o "jsonpath={$2}"; }

# One question and its answer, then until there are keys, and nothing in the way that an SDK has.
ask='
import json, os, time, urllib.error, urllib.request
def ask(token=None):
    headers = {"Authorization": token} if token else {}
    try:
        with urllib.request.urlopen(urllib.request.Request("http://169.254.170.23:9902/v1/credentials", headers=headers)) as answer:
            return json.load(answer)["RoleArn"]
    except urllib.error.HTTPError as refusal:
        document = json.load(refusal)
        return "%s %s: %s" % (refusal.code, document["code"], document["message"])
def ask_on(seconds):
    end = time.time() + seconds
    print("first:", ask(), flush=True)
    while time.time() < end:
        answer = ask()
        if not answer.startswith("503"):
            break
        time.sleep(0.2)
    print("then:", answer, flush=True)
'

boto3='import boto3; print(boto3.client("sts").get_caller_identity()["Arn"])'
identity='arn:aws:sts::111122223333:assumed-role/rolecall-example/rolecall-example\.whoami'

step "build: the images by the Dockerfile, the emulator by cargo"
"$cluster/up"
mkdir -p "$out"
"$cluster/images" "$out"
cargo build --quiet --bin rolecall
for image in agent net whoami; do "$cluster/load-image" "$out/$image.tar" >/dev/null; done
whoami=$(sed -n 's/.*"RepoTags":\["\([^"]*\)".*/\1/p' <(tar -xOf "$out/whoami.tar" manifest.json))
before=$(node_state)

step "emulator: an STS with the cluster's own keys"
kubectl get --raw /openid/v1/jwks >"$out/jwks.json"
cat >"$out/emulator.yaml" <<YAML
issuers:
  - {url: "https://kubernetes.default.svc.cluster.local", jwks_file: jwks.json}
roles:
  - arn: arn:aws:iam::111122223333:role/rolecall-example
    trust_policy:
      Version: "2012-10-17"
      Statement:
        - Effect: Allow
          Principal: {Federated: "arn:aws:iam::111122223333:oidc-provider/kubernetes.default.svc.cluster.local"}
          Action: sts:AssumeRoleWithWebIdentity
          Condition:
            StringEquals:
              kubernetes.default.svc.cluster.local:aud: sts.amazonaws.com
              kubernetes.default.svc.cluster.local:sub: system:serviceaccount:rolecall-example:whoami
  - arn: arn:aws:iam::111122223333:role/rolecall-second
    trust_policy:
      Version: "2012-10-17"
      Statement:
        - Effect: Allow
          Principal: {Federated: "arn:aws:iam::111122223333:oidc-provider/kubernetes.default.svc.cluster.local"}
          Action: sts:AssumeRoleWithWebIdentity
          Condition:
            StringEquals:
              kubernetes.default.svc.cluster.local:aud: sts.amazonaws.com
              kubernetes.default.svc.cluster.local:sub: system:serviceaccount:rolecall-example:second
YAML
mkfifo "$out/url"
"${CARGO_TARGET_DIR:-target}/debug/rolecall" emulator --config "$out/emulator.yaml" --listen "$CLUSTER_SUBNET.1:0" >"$out/url" 2>"$out/emulator.log" &
emulator=$!
exec 8<"$out/url"
read -r -t 10 sts <&8 || fail "the emulator did not start"
step "emulator: $sts"

# A cloud's node controller sets it; here it is a node without a cloud.
kubectl label node node1 topology.kubernetes.io/region=eu-central-1 >/dev/null
documented "Install"
step "installed as daemonset/README.md says, and ready"
expect "the addresses are on the node" '169\.254\.170\.23' on_node ip -o address show
kubectl -n rolecall set env daemonset/rolecall "AWS_ENDPOINT_URL_STS=$sts" >/dev/null
kubectl -n rolecall rollout status daemonset/rolecall --timeout=60s >/dev/null
step "the agent is rolled over to the emulator as its STS"

# The example as it stands, but for the image, which no registry gives us, and the application's own STS.
sed -e "s|image: .*|image: $whoami|" -e "/command:/a\          env: [{name: AWS_ENDPOINT_URL_STS, value: \"$sts\"}]" daemonset/example/example.yaml |
    kubectl apply -f - >/dev/null
kubectl -n rolecall-example wait --for=condition=complete job/whoami --timeout=60s >/dev/null
expect "the example's AWS CLI has the role" "$identity" kubectl -n rolecall-example logs job/whoami
expect "boto3 has the role" "$identity" in_pod boto3 whoami python3 -c "$boto3"

kubectl -n rolecall-example create serviceaccount nobody >/dev/null
expect "a pod whose ServiceAccount names no role is told so" NoRole in_pod nobody nobody python3 -c "$boto3"

# A right that is missing, and the one command that grants it.
kubectl delete clusterrolebinding rolecall-mint >/dev/null
kubectl -n rolecall-example create serviceaccount other >/dev/null
kubectl -n rolecall-example annotate serviceaccount other rolecall.dev/role-arn=arn:aws:iam::111122223333:role/rolecall-example >/dev/null
expect "a namespace that has not opted in gets nothing" 'ended: Error' in_pod refused other python3 -c "$boto3"

agent=$(kubectl -n rolecall get pod -l app.kubernetes.io/name=rolecall -o jsonpath='{.items[0].metadata.name}')
kubectl create rolebinding rolecall-mint -n rolecall-example --clusterrole=rolecall-mint --serviceaccount=rolecall:rolecall >/dev/null
kubectl -n rolecall delete pod "$agent" >/dev/null
kubectl -n rolecall rollout status daemonset/rolecall --timeout=60s >/dev/null
expect "the agent's pod was deleted, and its successor serves" "$identity" in_pod again whoami python3 -c "$boto3"

# shellcheck disable=SC2016
agent_status() { on_node sh -c 'grep -E "^(Uid|CapEff|VmRSS)" "/proc/$(pidof -s rolecall)/status"' | tr -s '\t\n' ' '; }
expect "the agent sees the node's processes as user 9902 without a capability" '^Uid: 9902 9902 9902 9902 .*CapEff: 0000000000000000' agent_status
step "the agent: $(agent_status)"

# ---- attacks

second='arn:aws:iam::111122223333:role/rolecall-second'
kubectl -n rolecall-example create serviceaccount second >/dev/null
kubectl -n rolecall-example annotate serviceaccount second "rolecall.dev/role-arn=$second" >/dev/null

# next_address ADDRESS: the next pod gets it, if it is free
next_address() { on_node sh -c "printf %s '${1%.*}.$((${1##*.} - 1))' >/var/lib/cni/networks/pods/last_reserved_ip.0"; }

# reuse NAME ADDRESS: pods of the second ServiceAccount, until one has the address; each asks at once
reuse() {
    local name=$1 address=$2 try pod answers
    for try in 1 2 3 4 5 6 7 8 9 10; do
        pod=$name-$try
        next_address "$address"
        start_pod "$pod" second -- python3 -c "$ask
ask_on(20)"
        answers=$(printed "$pod")
        [[ $answers != *rolecall-example* ]] || fail "$pod at $address has another pod's role: $answers"
        grep -qF "then: $second" <<<"$answers" || fail "$pod has not its own role: $answers"
        if [[ $(pod "$pod" .status.podIP) == "$address" ]]; then
            step "attack: $name: the $try. pod has $address: $(head -1 <<<"$answers")"
            return
        fi
    done
    fail "no pod got $address"
}

start_pod victim whoami -- python3 -c "$ask
ask_on(20)
time.sleep(600)"
victim_asked() { kubectl -n rolecall-example logs victim; }
for _ in {1..100}; do ! grep -q then: <(victim_asked 2>&1) || break; done
expect "the victim has its role" 'then: .*role/rolecall-example' victim_asked
victim=$(pod victim .status.podIP) victim_uid=$(pod victim .metadata.uid)

# While the victim lives.
nested='
import glob
moved = 0
for root in glob.glob("/sys/fs/cgroup/*/"):
    try:
        group = "%spod'$victim_uid'/%064x" % (root, 7)
        os.makedirs(group)
        open(group + "/cgroup.procs", "w").write(str(os.getpid()))
        moved += 1
    except OSError:
        pass
print("moved:", moved, open("/proc/self/cgroup").read().count("'$victim_uid'"))
ask_on(20)'
PRIVILEGED=1 start_pod nested second -- python3 -c "$ask$nested"
answers=$(printed nested)
grep -qE 'moved: [1-9][0-9]* [1-9]' <<<"$answers" || fail "no nested cgroup: $answers"
[[ $answers != *rolecall-example* ]] || fail "a nested cgroup's name was believed: $answers"
grep -qF "then: $second" <<<"$answers" || fail "the pod with a nested cgroup has not its own role: $answers"
step "attack: a cgroup below the pod's own, with the victim's name: its own role"

start_pod on-the-host whoami '"hostNetwork": true' -- python3 -c "$ask
ask_on(5)"
expect "attack: a hostNetwork pod without a token is refused" 'then: 40[13] (CallerNotIdentified|AuthorizationRequired): ' printed on-the-host

# The example as it stands, as above.
sed -e "s|image: .*|image: $whoami|" -e "/^ *env:/a\            - {name: AWS_ENDPOINT_URL_STS, value: \"$sts\"}" daemonset/example/host-network/*.yaml |
    kubectl apply -f - >/dev/null
kubectl -n rolecall-example wait --for=condition=complete job/whoami-host --timeout=60s >/dev/null
expect "a hostNetwork pod has the role for its token" "$identity" kubectl -n rolecall-example logs job/whoami-host

# token POD ACCOUNT AUDIENCE: one that the API server signs, bound to that pod
token() { kubectl -n rolecall-example create token "$2" --audience "$3" --bound-object-kind Pod --bound-object-name "$1"; }
start_pod gone whoami '"hostNetwork": true' -- sleep 600
gone=$(token gone whoami rolecall)
kubectl -n rolecall-example delete pod gone --force --grace-period=0 >/dev/null 2>&1
start_pod neighbour whoami '"hostNetwork": true' -- sleep 600
wrong=$(token neighbour whoami vault) victims=$(token victim whoami rolecall)
start_pod thief second '"hostNetwork": true' -- python3 -c "$ask
print('forged:', ask('${wrong%.*}.AAAA'))
print('gone:', ask('$gone'))
print('wrong:', ask('$wrong'))
print('victims:', ask('Bearer $victims'))"
thief=$(printed thief)
for refusal in 'forged: 403 CallerNotIdentified|forged: 401 AuthorizationInvalid' 'gone: 401 AuthorizationInvalid' 'wrong: 401 AuthorizationInvalid' 'victims: 403 SourceMismatch'; do
    expect "attack: on the host network, a token: $refusal" "$refusal" echo "$thief"
done

kubectl -n rolecall-example delete pod victim --force --grace-period=0 >/dev/null 2>&1
reuse deleted-by-force "$victim"
# One that asks, and ends while the next one is being started.
start_pod job whoami -- python3 -c "$ask
ask_on(20)
time.sleep(2)"
kubectl -n rolecall-example wait pod/job --timeout=60s --for=jsonpath='{.status.podIP}' >/dev/null
reuse ended-by-itself "$(pod job .status.podIP)"
expect "and the one that ended had its own" 'then: .*role/rolecall-example' printed job

kubectl -n rolecall-example apply -f - >/dev/null <<YAML
apiVersion: v1
kind: Pod
metadata: {name: two, labels: {rolecall.dev/inject: "true"}}
spec:
  serviceAccountName: second
  restartPolicy: Never
  containers:
    - {name: one, image: "$whoami", command: [python3, -c, &ask "$(sed -e 's/\\/\\\\/g; s/"/\\"/g; s/$/\\n/' <<<"$ask
ask_on(20)" | tr -d '\n')"]}
    - {name: two, image: "$whoami", command: [python3, -c, *ask]}
YAML
kubectl -n rolecall-example wait pod/two --timeout=60s --for=jsonpath='{.status.phase}'=Succeeded >/dev/null
answers=$(kubectl -n rolecall-example logs two --all-containers | grep -cF "then: $second")
((answers == 2)) || fail "two containers of one pod: $(kubectl -n rolecall-example logs two --all-containers)"
step "two containers of one pod have its role"

kubectl delete -f daemonset/example/ >/dev/null
documented "Uninstall"
left=$(diff <(echo "$before") <(node_state) || true)
[[ -z $left ]] || fail "uninstalling leaves: $left"
left=$(kubectl get clusterroles,clusterrolebindings,mutatingadmissionpolicies,mutatingadmissionpolicybindings,validatingadmissionpolicies,validatingadmissionpolicybindings,namespaces -o name | grep rolecall || true)
[[ -z $left ]] || fail "uninstalling leaves: $left"
step "uninstalled as daemonset/README.md says; the node and the cluster are as before"
# ---- a local cluster with untouched manifests

# page N: run the commands of a step of docs/local-cluster.md
page() {
    local commands
    commands=$(awk -v heading="## $1" 'index($0, heading) == 1 {on = 1; next} /^## /{on = 0} on && /^    / {print; seen = 1} on && seen && !/^    / {exit}' docs/local-cluster.md)
    [[ -n $commands ]] || fail "docs/local-cluster.md has no commands under $1"
    eval "$commands"
}

page "2. rolecall" >/dev/null
step "local: installed as docs/local-cluster.md says"
# The example as it stands, but for the image, and for the name of the Service: this cluster has no DNS.
sts=http://$(kubectl -n rolecall get service sts -o jsonpath='{.spec.clusterIP}')
sed -e "s|image: .*|image: $whoami|" -e "s|http://sts.rolecall|$sts|" daemonset/local/example/example.yaml | kubectl apply -f - >/dev/null
kubectl -n rolecall-local wait --for=condition=complete job/whoami --timeout=60s >/dev/null
identity='arn:aws:sts::000000000000:assumed-role/whoami/rolecall-local\.whoami'
expect "local: an application with nothing but the annotation has its role" "$identity" kubectl -n rolecall-local logs job/whoami
expect "local: it came by instance metadata" '"endpoint":"imds"' kubectl -n rolecall logs -l app.kubernetes.io/name=rolecall -c agent --tail=200
kubectl kustomize --load-restrictor LoadRestrictionsNone daemonset/local | kubectl delete -f - >/dev/null
kubectl apply -f daemonset/uninstall/ >/dev/null
kubectl -n rolecall-uninstall rollout status daemonset/rolecall-uninstall --timeout=60s >/dev/null
kubectl delete -f daemonset/uninstall/ >/dev/null
left=$(diff <(echo "$before") <(node_state) || true)
[[ -z $left ]] || fail "uninstalling the local cluster's leaves: $left"
step "local: uninstalled; the node is as before"
echo "e2e ok in $SECONDS s"
