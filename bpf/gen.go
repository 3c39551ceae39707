// Package bpf holds the datapath's C programs and the Go that bpf2go makes of
// them: the compiled objects and the types of every map. It knows nothing of
// how they are loaded.
package bpf

//go:generate go tool bpf2go -cc $BPF_CLANG -strip $BPF_STRIP -cflags "$BPF_CFLAGS" -no-global-types -target bpfel -type reason -type station_kind -type network_flag -type flow_phase -type address -type mac -type counter -type traffic -type device -type flood_budget -type owner_limits -type refused -type trunk -type allow -type station -type fdb_key -type network -type member_key -type link_key -type tunnel -type tunnel_ends -type tunnel_slot -type tunnel_bucket -type tunnel_flag -type tunnel_path -type tunnel_network_key -type learned -type learned_count -type learned_place -type learned_filter -type learned_record -type learn_what -type sweeper -type receiver -type uplink -type uplink_slot -type uplink_bucket -type flow_key -type flow_state -type flow_side -type flow_ref -type flow -type flow_share -type port_secret -type port_key -type port -type port_flag -type port_source_key -type flow_filter -type flow_choice -type fragment_place -type datagram -type cached_route -type action -type count_table -type count_command -type fragment_timeout -type mapping_slot -type network_id -type owner -type port_cells -type port_source_id -type ports_rule -type published -type share_rule -type state_capacity -type flood_limit -type table_capacity -type bucket_size -type tunnel_hash -type uplink_hash Ebpnet ebpnet.bpf.c

// The program of XDP is an object of its own, whose maps are those of the first.
// It does not use all that it includes.
//
//go:generate go tool bpf2go -cc $BPF_CLANG -strip $BPF_STRIP -cflags "$BPF_CFLAGS -Wno-unused-function" -no-global-types -target bpfel Xdp xdp.bpf.c
