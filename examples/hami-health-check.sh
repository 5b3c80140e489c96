#!/bin/sh
# Check an installation with kubectl alone: components, health of the scheduler, GPU nodes, registered devices.
# Usage: hami-health-check.sh [NAMESPACE]   (default: hami-system). Exit status: 0 all is well, 1 something is not.
# `hamictl doctor` checks much more.
set -u
namespace=${1:-hami-system}
failed=0

step() { printf '\n== %s\n' "$1"; }
good() { printf 'ok    %s\n' "$1"; }
bad() {
  printf 'FAIL  %s\n' "$1"
  failed=1
}

step "1. Components in namespace $namespace"
pods=$(kubectl -n "$namespace" get pods -l app.kubernetes.io/name=hami --no-headers \
  -o custom-columns=NAME:.metadata.name,PHASE:.status.phase,READY:.status.containerStatuses[*].ready) || exit 1
echo "$pods"
for component in scheduler device-plugin; do
  if kubectl -n "$namespace" get pods -l "app.kubernetes.io/name=hami,app.kubernetes.io/component=$component" -o name | grep -q .; then
    good "$component is there"
  else
    bad "there is no pod of $component"
  fi
done
if echo "$pods" | grep -qv ' Running ' || echo "$pods" | grep -q 'false'; then
  bad "not every pod is Running and ready: kubectl -n $namespace describe pods"
else
  good "every pod is Running and ready"
fi

step "2. Health of the scheduler"
if health=$(kubectl -n "$namespace" exec deploy/hami-scheduler -c extender -- wget -qO- localhost:8080/healthz); then
  echo "$health"
  good "the extender answers and is healthy"
else
  bad "the extender is not healthy: kubectl -n $namespace logs deploy/hami-scheduler -c extender"
fi

step "3. Nodes with GPUs"
nodes=$(kubectl get nodes -l accelerator=nvidia -o 'jsonpath={range .items[*]}{.metadata.name}{"\n"}{end}')
if [ -n "$nodes" ]; then
  echo "$nodes"
  good "the device plugin has labelled its nodes accelerator=nvidia"
else
  bad "no node has the label accelerator=nvidia: is a node labelled gpu=on, and does the device plugin run there?"
fi

step "4. Registered devices: what each node can allocate"
for node in $nodes; do
  slots=$(kubectl get node "$node" -o 'jsonpath={.status.allocatable.nvidia\.com/gpu}')
  printf '%s  nvidia.com/gpu allocatable %s\n' "$node" "${slots:-none}"
  kubectl get node "$node" -o 'jsonpath={.metadata.annotations.hami\.io/node-nvidia-register}'
  echo
  case "${slots:-0}" in
    0) bad "$node allocates no GPU: kubectl describe node $node, and the plugin's log" ;;
    *) good "$node allocates GPUs" ;;
  esac
done

printf '\n'
if [ "$failed" = 0 ]; then echo "All checks passed."; else echo "Some checks failed; hamictl doctor says more."; fi
exit "$failed"
