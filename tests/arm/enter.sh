#!/bin/sh
# Run words in an emulated board's whole system: enter.sh SYSTEM BOARD QEMU STICK HOME word...
#
# SYSTEM is a root of Debian arm64, BOARD holds what the board's kernel says (proc, sys), STICK and HOME are bound to
# /media/stick, where the words begin, and /home/pi. To be started by `unshare -rmn`: no network, and a binfmt_misc of its
# own, by which the kernel starts every arm64 program through QEMU, a file that needs no library.
set -eu
system=$1 board=$2 qemu=$3 stick=$4 home=$5
shift 5
magic='\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00' # 64 bits, little-endian, a program, AArch64
mask='\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff'
mount -t binfmt_misc none /proc/sys/fs/binfmt_misc
printf '%s' ":arm64:M::$magic:$mask:$qemu:F" >/proc/sys/fs/binfmt_misc/register
mount --rbind /proc "$system/proc"
for name in cpuinfo meminfo; do
  mount --bind "$board/proc/$name" "$system/proc/$name"
done
mount --bind "$board/sys" "$system/sys"
mount --rbind /dev "$system/dev"
mount -t tmpfs none "$system/tmp"
mount --bind "$stick" "$system/media/stick"
mount --bind "$home" "$system/home/pi"
exec chroot "$system" env --chdir=/media/stick "$@"
