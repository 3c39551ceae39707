package datapath

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/cilium/ebpf"

	"github.com/ebpnet/ebpnet/bpf"
)

// Station says where frames to a MAC of a network go.
type Station struct {
	Network          uint32
	MAC              [6]byte
	Endpoint, Tunnel uint32        // it is behind this one; 0: none
	Gateway          bool          // it is the host itself
	Learned          bool          // learned, not static
	Age              time.Duration // of a learned one, since its last packet
}

// Stations lists all stations by network and MAC, static and learned.
func (t *Tables) Stations() ([]Station, error) {
	now, err := coarseNow()
	if err != nil {
		return nil, err
	}
	var stations []Station
	err = eachBatch(t.Maps.Fdb, func(keys []bpf.EbpnetFdbKey, values []bpf.EbpnetStation) {
		for i, key := range keys {
			stations = append(stations, stationOf(key, values[i]))
		}
	})
	if err != nil {
		return nil, fmt.Errorf("list stations: %w", err)
	}
	err = eachBatch(t.Maps.LearnedFdb, func(keys []bpf.EbpnetFdbKey, values []bpf.EbpnetLearned) {
		for i, key := range keys {
			s := stationOf(key, values[i].Station)
			s.Learned, s.Age = true, max(0, now-time.Duration(values[i].Seen))
			stations = append(stations, s)
		}
	})
	if err != nil {
		return nil, fmt.Errorf("list learned stations: %w", err)
	}
	slices.SortStableFunc(stations, func(a, b Station) int {
		return cmp.Or(cmp.Compare(a.Network, b.Network), bytes.Compare(a.MAC[:], b.MAC[:]))
	})
	return stations, nil
}

func stationOf(key bpf.EbpnetFdbKey, s bpf.EbpnetStation) Station {
	return Station{
		Network:  key.Network,
		MAC:      key.Mac.Byte,
		Endpoint: s.Endpoint,
		Tunnel:   s.Tunnel,
		Gateway:  s.Kind == bpf.EbpnetStationKindSTATION_GATEWAY,
	}
}

// LearnedStations returns the number of MACs now learned on a network.
func (t *Tables) LearnedStations(network uint32) (uint32, error) {
	var count bpf.EbpnetLearnedCount
	err := t.Maps.LearnedCounts.Lookup(bpf.EbpnetLearnedPlace{Network: network}, &count)
	if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return 0, fmt.Errorf("count learned stations of network %d: %w", network, err)
	}
	return count.Stations, nil
}

// LearnedFilter selects learned stations by network, endpoint and tunnel. A
// zero field matches all.
type LearnedFilter struct {
	Network, Endpoint, Tunnel uint32
}

// ForgetLearned forgets the learned MACs and addresses that f selects.
func (t *Tables) ForgetLearned(f LearnedFilter) error {
	entry := bpf.EbpnetLearnedFilter{Network: f.Network, Endpoint: f.Endpoint, Tunnel: f.Tunnel}
	if _, err := command(t.Programs.ForgetLearned, entry); err != nil {
		return fmt.Errorf("forget learned stations: %w", err)
	}
	return nil
}

// place is where a station is learned: a trunk or a tunnel.
type place struct {
	LearnedFilter
	ifindex uint32 // of a trunk
}

func placeOf(s bpf.EbpnetStation) place {
	return place{LearnedFilter{Network: s.Network, Endpoint: s.Endpoint, Tunnel: s.Tunnel}, s.Ifindex}
}

// forgetElsewhere forgets the stations learned in any other place.
func (t *Tables) forgetElsewhere(places map[place]bool) error {
	gone := map[LearnedFilter]bool{}
	look := func(learned []bpf.EbpnetLearned) {
		for _, l := range learned {
			if p := placeOf(l.Station); !places[p] {
				gone[p.LearnedFilter] = true
			}
		}
	}
	err := eachBatch(t.Maps.LearnedFdb, func(_ []bpf.EbpnetFdbKey, learned []bpf.EbpnetLearned) { look(learned) })
	if err == nil {
		err = eachBatch(t.Maps.LearnedNeigh, func(_ []bpf.EbpnetAddress, learned []bpf.EbpnetLearned) { look(learned) })
	}
	if err != nil {
		return fmt.Errorf("list learned stations: %w", err)
	}
	for f := range gone {
		if err := t.ForgetLearned(f); err != nil {
			return err
		}
	}
	return nil
}
