# shellcheck shell=bash
# The command lines of the control plane, shared by the whole cluster (up) and the API server
# alone (apiserver-up). Source it after lib.sh; PKI and DATA name the folders to use.

# Both print one argument a line; read them with mapfile.
etcd_args() { # CLIENT-PORT PEER-PORT
  # Durability against power loss is of no use in a cluster that lives for one test.
  printf '%s\n' --name=n1 "--data-dir=$DATA/etcd" \
    "--listen-client-urls=http://127.0.0.1:$1" "--advertise-client-urls=http://127.0.0.1:$1" \
    "--listen-peer-urls=http://127.0.0.1:$2" "--initial-advertise-peer-urls=http://127.0.0.1:$2" \
    "--initial-cluster=n1=http://127.0.0.1:$2" --unsafe-no-fsync --log-level=warn
}
apiserver_args() { # PORT ETCD-PORT BIND-ADDRESS ADVERTISE-ADDRESS
  printf '%s\n' "--secure-port=$1" "--etcd-servers=http://127.0.0.1:$2" "--bind-address=$3" "--advertise-address=$4" \
    --service-cluster-ip-range=10.96.0.0/16 --authorization-mode=Node,RBAC --allow-privileged=true \
    --enable-admission-plugins=NodeRestriction "--client-ca-file=$PKI/ca.crt" \
    "--tls-cert-file=$PKI/apiserver.crt" "--tls-private-key-file=$PKI/apiserver.key" \
    "--kubelet-client-certificate=$PKI/apiserver-kubelet-client.crt" "--kubelet-client-key=$PKI/apiserver-kubelet-client.key" \
    "--kubelet-certificate-authority=$PKI/ca.crt" --kubelet-preferred-address-types=InternalIP \
    --service-account-issuer=https://kubernetes.default.svc \
    "--service-account-signing-key-file=$PKI/sa.key" "--service-account-key-file=$PKI/sa.pub" \
    "--requestheader-client-ca-file=$PKI/ca.crt" --requestheader-allowed-names=front-proxy-client \
    --requestheader-extra-headers-prefix=X-Remote-Extra- --requestheader-group-headers=X-Remote-Group \
    --requestheader-username-headers=X-Remote-User \
    "--proxy-client-cert-file=$PKI/front-proxy-client.crt" "--proxy-client-key-file=$PKI/front-proxy-client.key"
}
controller_manager_args() { # PORT
  printf '%s\n' "--secure-port=$1" "--kubeconfig=$PKI/kube-controller-manager.kubeconfig" \
    "--authentication-kubeconfig=$PKI/kube-controller-manager.kubeconfig" \
    "--authorization-kubeconfig=$PKI/kube-controller-manager.kubeconfig" \
    --bind-address=127.0.0.1 --leader-elect=false --use-service-account-credentials=true \
    "--service-account-private-key-file=$PKI/sa.key" "--root-ca-file=$PKI/ca.crt" \
    "--cluster-signing-cert-file=$PKI/ca.crt" "--cluster-signing-key-file=$PKI/ca.key" \
    --cluster-cidr=10.244.0.0/16 --service-cluster-ip-range=10.96.0.0/16
}
# Readiness, asked as the administrator.
admin_curl() { curl -sf --max-time 2 --cacert "$PKI/ca.crt" --cert "$PKI/admin.crt" --key "$PKI/admin.key" "$@"; }
