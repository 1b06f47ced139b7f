#!/usr/bin/env bash
# guest-disk.sh IMAGE DISK AGENT STATE FILES PORT...: makes DISK, a copy of dev/server's IMAGE, a protected server: with
# the program AGENT, the state directory STATE, what `lifeboat-agent install` would write (from FILES), and PORTs of the
# machine that runs it as ports of its own. An SSH key for root is left beside DISK.
set -euo pipefail
image=$1 disk=$2 agent=$3 state=$4 files=$5
shift 5
binary=/usr/local/bin/lifeboat-agent
cp --sparse=always --reflink=auto "$image" "$disk"
root=$(mktemp -d)
loops=()
finish() {
  local status=$?
  umount "$root/proc" 2>/dev/null || true
  umount --recursive --lazy "$root/dev" 2>/dev/null || true
  if mountpoint -q "$root/boot"; then umount "$root/boot" || status=1; fi
  umount "$root" || status=1
  for loop in "${loops[@]}"; do losetup --detach "$loop" || status=1; done
  rmdir "$root" || status=1
  exit $status
}
trap finish EXIT
# at BYTE FOLDER: mounts the file system that begins there. Its own end is in its superblock.
at() {
  loops+=("$(losetup --find --show --offset "$1" "$disk")")
  mount "${loops[-1]}" "$2"
}
# One partition, or /boot and a physical volume whose first volume is root (see dev/server/build).
mapfile -t partitions < <(sfdisk -q --list --output Start "$disk" | tail -n +2)
if [ ${#partitions[@]} = 1 ]; then
  at $((partitions[0] * 512)) "$root"
else
  at $((partitions[1] * 512 + (1 << 20))) "$root"
  at $((partitions[0] * 512)) "$root/boot"
fi

cp "$agent" "$root$binary"
cp -r "$state" "$root/var/lib/lifeboat-agent"
chown -R root:root "$root/var/lib/lifeboat-agent"
chmod 0700 "$root/var/lib/lifeboat-agent"
put() {
  mkdir -p "$(dirname "$root/$2")"
  sed "s,@BINARY@,$binary,g" "$files/$1" >"$root/$2"
  chmod "$3" "$root/$2"
}
put lifeboat-agent.service etc/systemd/system/lifeboat-agent.service 0644
put lifeboat-thaw.service etc/systemd/system/lifeboat-thaw.service 0644
# Where systemd is: a Debian 11 that was not merged has it in /lib.
lib=usr/lib
[ -L "$root/lib" ] || lib=lib
put system-shutdown $lib/systemd/system-shutdown/lifeboat-agent 0755
put initramfs-hook etc/initramfs-tools/hooks/lifeboat-agent 0755
put initramfs-premount etc/initramfs-tools/scripts/local-premount/lifeboat-agent 0755

# Its identity comes from here, not from QEMU's command line.
mkdir -p "$root/etc/lifeboat-dev" "$root/root/.ssh"
touch "$root/etc/lifeboat-dev/identity"
ssh-keygen -q -t ed25519 -N '' -f "$(dirname "$disk")/ssh_key"
cp "$(dirname "$disk")/ssh_key.pub" "$root/root/.ssh/authorized_keys"
printf '[Match]\nName=en* eth*\n[Network]\nAddress=10.0.2.15/24\n' >"$root/etc/systemd/network/10-test.network"
for port; do
  printf '[Socket]\nListenStream=127.0.0.1:%s\n[Install]\nWantedBy=sockets.target\n' "$port" >"$root/etc/systemd/system/host-$port.socket"
  printf '[Service]\nExecStart=/lib/systemd/systemd-socket-proxyd 10.0.2.2:%s\n' "$port" >"$root/etc/systemd/system/host-$port.service"
  chroot "$root" systemctl -q enable "host-$port.socket"
done
# The way to the appliance, which a shutdown by order must not take away.
mkdir "$root/etc/systemd/system/lifeboat-agent.service.d"
printf '[Service]\nEnvironment=LIFEBOAT_SHUTDOWN_KEEPS=host-\n' >"$root/etc/systemd/system/lifeboat-agent.service.d/test.conf"
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount --make-rslave "$root/dev"
chroot "$root" ssh-keygen -A >/dev/null
chroot "$root" systemd-machine-id-setup >/dev/null 2>&1
chroot "$root" systemctl -q enable lifeboat-agent lifeboat-thaw
if [ -e "$root/usr/lib/postgresql" ]; then chroot "$root" systemctl -q disable postgresql lifeboat-dev-database; fi
chroot "$root" update-initramfs -u -k all
