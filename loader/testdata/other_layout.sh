#!/bin/sh
# Makes other_layout.o.gz for the tests: the programs of bpf/ with state of
# another layout. Fields have another order and size, and values of enums have
# moved.
set -eu
cd "$(dirname "$0")"
work=$(mktemp -d)
trap 'rm -r "$work"' EXIT
cp -r ../../bpf/*.h ../../bpf/*.c ../../bpf/headers "$work"
cat "$work"/*.h >"$work/before"

# change PATTERN REPLACEMENT edits the headers.
change() {
	sed -z -i "s|$1|$2|" "$work"/*.h
	cat "$work"/*.h >"$work/after"
	if cmp -s "$work/before" "$work/after"; then
		echo "other_layout.sh: nothing matches $1" >&2
		exit 1
	fi
	mv "$work/after" "$work/before"
}

change 'struct flow {\n' 'struct flow {\n\t__u64 state_since;\n\t__u32 uplink_of;\n\tenum flow_state state;\n\tstruct counter sent[2];\n'
change '\tstruct counter sent\[2\] __[^;]*; /\*[^;]*\*/\n' ''
change '_Static_assert(__builtin_offsetof(struct flow,[^;]*;\n' ''
change '_Static_assert(__builtin_offsetof(struct flow,[^;]*;\n' ''
change '\tenum flow_phase phase;\n\tenum flow_state state;\n' '\tenum flow_phase phase;\n\t__u32 spare;\n'
change '\tPHASE_NONE,\n' '\tPHASE_NONE,\n\tPHASE_FIRST,\n'
change '\tFLOW_HALF_OPEN,[^\n]*\n\t\(FLOW_[A-Z]*\),\n' '\t\1,\n\tFLOW_MIDDLE,\n\tFLOW_HALF_OPEN,\n'
change 'struct flow {\(.*\)sizeof(struct flow) == 256' 'struct flow {\1sizeof(struct flow) == 264'
change 'enum reason {\n\tREASON_NONE,\n\tREASON_MALFORMED,\n' 'enum reason {\n\tREASON_NONE,\n\tREASON_OTHER,\n\tREASON_INTERMEDIATE,\n\tREASON_MALFORMED,\n'
change '\tstruct counter tx;\n\tstruct counter rx;\n' '\tstruct counter rx;\n\tstruct counter tx;\n'
change '\t__u64 packets;\n\t__u64 bytes;\n' '\t__u64 bytes;\n\t__u64 packets;\n'
change 'struct learned {\n\([^\n]*\)\n\([^\n]*\)\n\([^\n]*\)\n\([^\n]*\)\n' 'struct learned {\n\4\n\2\n\3\n\1\n'
change 'struct link_key {\n\t__u32 client;\n\t__u32 server;\n' 'struct link_key {\n\t__u32 server;\n\t__u32 client;\n'

$BPF_CLANG $BPF_CFLAGS -target bpfel -ffile-prefix-map="$work"/= -I"$work/headers" -c "$work/ebpnet.bpf.c" -o "$work/other.o"
$BPF_STRIP -g "$work/other.o"
gzip -9nc "$work/other.o" >other_layout.o.gz
