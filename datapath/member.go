package datapath

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"

	"github.com/ebpnet/ebpnet/bpf"
)

// isShared reports whether other stations can be behind a member.
func isShared(s bpf.EbpnetStation) bool { return s.Tunnel != 0 || s.Trunk != 0 }

// addMember counts one more member of a network, and returns its key.
func addMember(network *bpf.EbpnetNetwork, s bpf.EbpnetStation) bpf.EbpnetMemberKey {
	key := bpf.EbpnetMemberKey{Network: s.Network, Index: network.Members}
	network.Members++
	if isShared(s) {
		network.Shared++
	}
	return key
}

// join adds a station to the members of its network. It must not be a member
// yet.
func (t *Tables) join(s bpf.EbpnetStation) error {
	network, err := t.network(s.Network)
	if err != nil {
		return err
	}
	if err := put(t.Maps.Members, addMember(&network, s), s); err != nil {
		return err
	}
	return put(t.Maps.Networks, s.Network, network)
}

// leave removes a station from the members of its network. The last member
// takes its index.
func (t *Tables) leave(s bpf.EbpnetStation) error {
	index, err := t.findMember(s)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	network, err := t.network(s.Network)
	if err != nil {
		return err
	}
	going, err := t.member(s.Network, index)
	if err != nil {
		return err
	}
	last := network.Members - 1
	moved, err := t.member(s.Network, last)
	if err != nil {
		return err
	}
	if err := put(t.Maps.Members, bpf.EbpnetMemberKey{Network: s.Network, Index: index}, moved); err != nil {
		return err
	}
	network.Members--
	if isShared(going) {
		network.Shared--
	}
	if err := put(t.Maps.Networks, s.Network, network); err != nil {
		return err
	}
	return remove(t.Maps.Members, bpf.EbpnetMemberKey{Network: s.Network, Index: last})
}

// keepIndexes gives wanted members the indexes that they already have, if that
// leaves no gap. So a frame that is being flooded at the same time reaches all
// of them.
func (t *Tables) keepIndexes(wanted map[bpf.EbpnetMemberKey]bpf.EbpnetStation) (map[bpf.EbpnetMemberKey]bpf.EbpnetStation, error) {
	remaining := make(map[bpf.EbpnetStation]bool, len(wanted))
	for _, s := range wanted {
		remaining[s] = true
	}
	places := make(map[bpf.EbpnetMemberKey]bpf.EbpnetStation, len(wanted))
	err := eachBatch(t.Maps.Members, func(keys []bpf.EbpnetMemberKey, stations []bpf.EbpnetStation) {
		for i, key := range keys {
			if _, taken := wanted[key]; taken && remaining[stations[i]] {
				places[key] = stations[i]
				delete(remaining, stations[i])
			}
		}
	})
	if err != nil {
		return nil, fmt.Errorf("read the members: %w", err)
	}
	free := map[uint32][]bpf.EbpnetMemberKey{}
	for key := range wanted {
		if _, taken := places[key]; !taken {
			free[key.Network] = append(free[key.Network], key)
		}
	}
	for s := range remaining {
		keys := free[s.Network]
		places[keys[0]] = s
		free[s.Network] = keys[1:]
	}
	return places, nil
}

// changeMember writes a station again that is a member of its network.
func (t *Tables) changeMember(s bpf.EbpnetStation) error {
	if err := t.leave(s); err != nil {
		return err
	}
	return t.join(s)
}

// findMember finds the index of an endpoint or a tunnel among the members of
// its network, from the newest on. It returns ebpf.ErrKeyNotExist if the
// station is no member.
func (t *Tables) findMember(s bpf.EbpnetStation) (uint32, error) {
	network, err := t.network(s.Network)
	if err != nil {
		return 0, err
	}
	for i := network.Members; i > 0; i-- {
		member, err := t.member(s.Network, i-1)
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			continue
		}
		if err != nil {
			return 0, err
		}
		if member.Endpoint == s.Endpoint && member.Tunnel == s.Tunnel {
			return i - 1, nil
		}
	}
	return 0, ebpf.ErrKeyNotExist
}

func (t *Tables) member(network, index uint32) (s bpf.EbpnetStation, err error) {
	if err := t.Maps.Members.Lookup(bpf.EbpnetMemberKey{Network: network, Index: index}, &s); err != nil {
		return s, fmt.Errorf("read member %d of network %d: %w", index, network, err)
	}
	return s, nil
}

func (t *Tables) network(id uint32) (n bpf.EbpnetNetwork, err error) {
	if err := t.Maps.Networks.Lookup(id, &n); err != nil {
		return n, fmt.Errorf("read network %d: %w", id, err)
	}
	return n, nil
}
