package datapath

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"

	"github.com/ebpnet/ebpnet/bpf"
)

// The ranges of ids of endpoints. The tables count the traffic of local
// endpoints.
const (
	MaxLocalID    = uint32(bpf.EbpnetTableCapacityMAX_LOCAL_ENDPOINTS) - 1
	MaxEndpointID = ownerPorts - 1
)

// Endpoint is an interface on a network. It is local, behind the host-side veth
// Ifindex, or remote, behind a tunnel.
type Endpoint struct {
	ID         uint32
	Network    uint32
	MAC        [6]byte
	Addresses  []netip.Addr // at most one per family
	Ifindex    int          // local
	Tunnel     uint32       // remote: the tunnel's id; local: 0
	Trunk      bool         // local: other stations can be behind it
	NAPI       bool         // local: its veth accepts frames from XDP
	DHCPServer bool         // local: it may send DHCP server messages
	Router     bool         // local: it may send router messages
	Limits                  // local
}

// Remote reports whether e is behind a tunnel.
func (e Endpoint) Remote() bool { return e.Tunnel != 0 }

func (e Endpoint) mac() bpf.EbpnetMac { return bpf.EbpnetMac{Byte: e.MAC} }

func (e Endpoint) trunk() uint8 { return flag(e.Trunk) }

// allow gives the endpoint's roles as the flags of the C programs.
func (e Endpoint) allow() uint8 {
	var allow bpf.EbpnetAllow
	if e.DHCPServer {
		allow |= bpf.EbpnetAllowALLOW_DHCP_SERVER
	}
	if e.Router {
		allow |= bpf.EbpnetAllowALLOW_ROUTER
	}
	return uint8(allow)
}

// flag converts a bool to the C programs' form.
func flag(set bool) uint8 {
	if set {
		return 1
	}
	return 0
}

func (e Endpoint) station() bpf.EbpnetStation {
	s := bpf.EbpnetStation{
		Network:  e.Network,
		Endpoint: e.ID,
		Kind:     bpf.EbpnetStationKindSTATION_LOCAL,
		Mac:      e.mac(),
	}
	if e.Remote() {
		s.Kind = bpf.EbpnetStationKindSTATION_REMOTE
		s.Tunnel = e.Tunnel
	} else {
		s.Ifindex, s.Trunk, s.Napi = uint32(e.Ifindex), e.trunk(), flag(e.NAPI)
	}
	return s
}

func (e Endpoint) device() bpf.EbpnetDevice {
	d := bpf.EbpnetDevice{Network: e.Network, Endpoint: e.ID, Mac: e.mac(), Trunk: e.trunk(), Allow: e.allow()}
	for _, a := range e.Addresses {
		if a.Is4() {
			d.Ipv4 = addressOf(a)
		} else {
			d.Ipv6 = addressOf(a)
		}
	}
	return d
}

func fdbKey(network uint32, mac bpf.EbpnetMac) bpf.EbpnetFdbKey {
	return bpf.EbpnetFdbKey{Network: network, Mac: mac}
}

// PutEndpoint writes an endpoint. A local endpoint can send once PutEndpoint
// returns.
func (t *Tables) PutEndpoint(e Endpoint) error {
	if err := put(t.Maps.Fdb, fdbKey(e.Network, e.mac()), e.station()); err != nil {
		return err
	}
	for _, a := range e.Addresses {
		if err := put(t.Maps.Neighbors, addressOf(a), e.station()); err != nil {
			return err
		}
	}
	if e.Remote() {
		return nil
	}
	var old bpf.EbpnetDevice
	err := t.Maps.Devices.Lookup(uint32(e.Ifindex), &old)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		err = t.join(e.station())
	} else if err == nil && flag(old.Trunk != 0) != e.trunk() {
		err = t.changeMember(e.station())
	}
	if err != nil {
		return err
	}
	if err := t.setLimits(e.ID, e.limits()); err != nil {
		return err
	}
	if err := put(t.Maps.Devices, uint32(e.Ifindex), e.device()); err != nil {
		return err
	}
	if old.Trunk == 0 || e.Trunk {
		return nil
	}
	return t.endTrunk(e)
}

// SetEndpoint writes the permissions and limits of a local endpoint. They hold
// from its next packet. Its addresses, MAC and network stay.
func (t *Tables) SetEndpoint(e Endpoint) error {
	if err := t.setLimits(e.ID, e.limits()); err != nil {
		return err
	}
	return put(t.Maps.Devices, uint32(e.Ifindex), e.device())
}

// DeleteEndpoint removes an endpoint, its flows, and the stations learned
// behind it. Delete its links first.
func (t *Tables) DeleteEndpoint(e Endpoint) error {
	if !e.Remote() {
		err := t.retire([]bpf.EbpnetDevice{e.device()}, func() error {
			return remove(t.Maps.Devices, uint32(e.Ifindex))
		})
		if err != nil {
			return err
		}
		if err := t.leave(e.station()); err != nil {
			return err
		}
		if err := t.setLimits(e.ID, Limits{}); err != nil {
			return err
		}
	}
	if err := remove(t.Maps.Fdb, fdbKey(e.Network, e.mac())); err != nil {
		return err
	}
	for _, a := range e.Addresses {
		if err := remove(t.Maps.Neighbors, addressOf(a)); err != nil {
			return err
		}
	}
	if e.Trunk {
		return t.endTrunk(e)
	}
	return t.endUnbackedFlowsOf(e.ID)
}

// endTrunk forgets the stations learned behind an endpoint, and ends their
// flows.
func (t *Tables) endTrunk(e Endpoint) error {
	if err := t.ForgetLearned(LearnedFilter{Network: e.Network, Endpoint: e.ID}); err != nil {
		return err
	}
	return t.endUnbackedFlowsOf(e.ID)
}

// LocalEndpoints lists the ids of the endpoints that have a device.
func (t *Tables) LocalEndpoints() ([]uint32, error) {
	devices, err := t.devices()
	ids := make([]uint32, len(devices))
	for i, d := range devices {
		ids[i] = d.Endpoint
	}
	return ids, err
}

func (t *Tables) devices() ([]bpf.EbpnetDevice, error) {
	var all []bpf.EbpnetDevice
	err := eachBatch(t.Maps.Devices, func(_ []uint32, devices []bpf.EbpnetDevice) {
		all = append(all, devices...)
	})
	if err != nil {
		return nil, fmt.Errorf("list local endpoints: %w", err)
	}
	return all, nil
}
