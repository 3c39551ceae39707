package agent

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"github.com/ebpnet/ebpnet/internal/host"
	"github.com/ebpnet/ebpnet/internal/spec"
	"github.com/ebpnet/ebpnet/internal/store"
)

// room tells which ports of the host can be published.
type room struct {
	tx     *store.Tx
	taken  map[spec.Protocol][]occupied // of those protocols that were asked for
	podman bool                         // it is for Podman, which may call us as CNI
}

func newRoom(tx *store.Tx, e spec.Endpoint) *room {
	return &room{tx, map[spec.Protocol][]occupied{}, slices.Contains([]string{spec.Podman, spec.CNI}, e.Container.Engine)}
}

// isReserved tells whether o only holds a port for a container: Podman would
// not have asked for one that it holds for another.
func (r *room) isReserved(o occupied) bool {
	return r.podman && o.listener != nil && o.listener.Holds()
}

// occupied is a range of the host's ports that is published, or a port that a
// process listens on.
type occupied struct {
	first, last uint16
	address     netip.Addr     // as in spec.Port
	routed      bool           // the address is an endpoint's own
	listener    *host.Listener // nil: it is published
}

// concerns tells whether o is at an address that p would be published at.
func (o occupied) concerns(p spec.Port, at []published) bool {
	routed := len(at) > 0 && at[0].host == at[0].target
	if o.routed || routed {
		return o.address == p.Address
	}
	if o.listener == nil {
		return spec.AddressesOverlap(o.address, p.Address)
	}
	return slices.ContainsFunc(at, func(a published) bool {
		return spec.AddressesOverlap(o.address, a.host) || o.listener.DualStack && a.host.Is4()
	})
}

// owner names the owner of a port of the host that the publication wants.
func (r *room) owner(o occupied, wanted spec.Port) (string, error) {
	if o.listener != nil {
		return o.listener.Owner(), nil
	}
	p, err := r.tx.Port(store.PortKey{Protocol: wanted.Protocol, First: o.first, Last: o.last, Address: o.address})
	if err != nil {
		return "", err
	}
	e, err := r.tx.Endpoint(p.Endpoint)
	text := fmt.Sprintf("endpoint %s, which publishes %s", e.Title(), p)
	if wanted.MaxFlows != 0 && p.Endpoint == wanted.Endpoint && p.Fulfills(wanted) {
		text += "; 'ebpnet port set' changes its limit"
	}
	return text, err
}

// take finds out whether the host's ports of a new publication are free, or
// chooses some.
func (r *room) take(p *spec.Port, at []published) error {
	if err := r.look(p.Protocol); err != nil {
		return err
	}
	if p.First == 0 {
		if err := r.choose(p, at); err != nil {
			return err
		}
	}
	for _, o := range r.taken[p.Protocol] {
		if o.first > p.Last || o.last < p.First || !o.concerns(*p, at) || r.isReserved(o) {
			continue
		}
		owner, err := r.owner(o, *p)
		if err != nil {
			return err
		}
		where := "every address"
		if o.address.IsValid() {
			where = o.address.String()
		}
		return fmt.Errorf("port %d/%s of %s is %w by %s", max(o.first, p.First), p.Protocol, where, ErrInUse, owner)
	}
	r.add(p.Protocol, occupied{first: p.First, last: p.Last, address: p.Address})
	return nil
}

// look finds what is taken of a protocol's ports, once.
func (r *room) look(protocol spec.Protocol) error {
	if _, known := r.taken[protocol]; known {
		return nil
	}
	r.taken[protocol] = []occupied{}
	for key, err := range r.tx.PortKeys(protocol) {
		if err != nil {
			return err
		}
		r.add(protocol, occupied{first: key.First, last: key.Last, address: key.Address})
	}
	listeners, err := host.Listeners(uint8(protocol))
	if err != nil {
		return err
	}
	for _, l := range listeners {
		r.add(protocol, occupied{first: l.Port, last: l.Port, address: l.Address, listener: &l})
	}
	return nil
}

func (r *room) add(protocol spec.Protocol, o occupied) {
	if o.listener == nil && o.address.IsValid() {
		_, o.routed = r.tx.AddressOwner(o.address)
	}
	r.taken[protocol] = append(r.taken[protocol], o)
}

// choose gives p the first free ports of those that are chosen from.
func (r *room) choose(p *spec.Port, at []published) error {
	taken := slices.Clone(r.taken[p.Protocol])
	slices.SortFunc(taken, func(a, b occupied) int { return cmp.Compare(a.first, b.first) })
	first := spec.FirstChosenPort
	for _, o := range taken {
		if int(o.first) >= first+p.Count() {
			break
		}
		if o.concerns(*p, at) {
			first = max(first, int(o.last)+1)
		}
	}
	last := first + p.Count() - 1
	if last > spec.LastChosenPort {
		return fmt.Errorf("port %s: %w, there are no %d free in a row from %d to %d; name a port of the host",
			p, store.ErrExhausted, p.Count(), spec.FirstChosenPort, spec.LastChosenPort)
	}
	p.First, p.Last = uint16(first), uint16(last)
	return nil
}
