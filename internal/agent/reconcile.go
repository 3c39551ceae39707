package agent

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"

	"golang.org/x/sync/errgroup"

	"github.com/ebpnet/ebpnet/datapath"
	"github.com/ebpnet/ebpnet/internal/host"
	"github.com/ebpnet/ebpnet/internal/spec"
	"github.com/ebpnet/ebpnet/internal/store"
	"github.com/ebpnet/ebpnet/loader"
)

// Reconcile brings the devices and tables of this host to what the store
// wants, whatever they were. Nothing is changed that is right already. An
// endpoint whose namespace has gone is forgotten, with its links and ports;
// after a reboot only one that an engine made, as that makes it anew. One
// that cannot be made keeps nothing else from being done; it stays pending.
func (a *Agent) Reconcile() error {
	w, err := a.everything()
	if err != nil {
		return err
	}
	gateway, err := a.host.EnsureGateway(w.host.GatewayMAC)
	if err != nil {
		return err
	}
	renew, err := a.isNew(gateway)
	renew = renew || slices.Contains(w.pending, store.Change{Kind: store.KindHost}) // see putHost
	if err == nil && renew && !a.fresh {
		err = a.loadPrograms(loaderConfig(gateway, w.host))
	}
	if err != nil {
		return err
	}
	if err := a.host.SetGatewayAddresses(gatewayPrefixes(w.networks)); err != nil {
		return err
	}
	uplinks, err := a.uplinks(w.host)
	if err != nil {
		return err
	}
	if err := a.host.SetGatewayMTU(gatewayMTU(uplinks)); err != nil {
		return err
	}
	planned, err := a.planXDP(w.host.XDP, uplinks)
	if err != nil {
		return err
	}
	veths, made, failed, err := a.reconcileVeths(&w, uplinks)
	if err != nil {
		return err
	}
	napi := map[string]bool{}
	if anyXDP(planned) {
		for name := range veths {
			e := w.endpoints[name]
			napi[name] = a.ensureNAPI(vethOf(e, w.networks[e.Network], 0))
		}
	}
	if len(w.ports) > 0 {
		if err := a.openLoopback(); err != nil {
			return err
		}
	}
	if err := a.reconcilePaths(&w); err != nil {
		return err
	}
	detour := detourOf(gateway, len(w.tunnels) > 0)
	if err := a.addDetour(detour); err != nil {
		return err
	}
	tables := w.tablesFor(veths, napi, planned)
	if tables.Broadcasts, err = a.broadcasts(); err != nil {
		return err
	}
	if err := a.tables.Replace(tables); err != nil {
		return err
	}
	if err := a.closeLoopback(); err != nil {
		return err
	}
	if err := a.tables.CarryFlows(); err != nil {
		return err
	}
	toUplink, fromUplink := uplinkHooks(uplinks)
	inFront, err := a.attachInFront(fromUplink)
	if err != nil {
		return err
	}
	// What keeps packets out comes before what lets them in. The new program of
	// ToUplink knows what an older FromEndpoint sends, but not the other way round.
	hooks := []attachment{
		{loader.ToGateway, []int{gateway.Near}},
		{loader.FromHost, []int{gateway.Far}},
		toUplink,
		{loader.FromEndpoint, slices.Collect(maps.Values(veths))},
		detour,
	}
	if !inFront {
		hooks = append(hooks, fromUplink)
	}
	if err := a.attach(hooks); err != nil {
		return err
	}
	if err := a.attachXDP(w.host, planned); err != nil {
		return err
	}
	if err := a.finishMigration(); err != nil {
		return err
	}
	if err := a.tables.PromoteFronts(); err != nil {
		return err
	}
	if err := a.attach([]attachment{fromUplink}); err != nil {
		return err
	}
	var announcing errgroup.Group
	announcing.SetLimit(announcers)
	for _, name := range made {
		e := w.endpoints[name]
		n := w.networks[e.Network]
		veth := vethOf(e, n, 0)
		if err := a.host.SetUp(veths[name], veth); err != nil {
			failed = errors.Join(failed, fmt.Errorf("endpoint %q: %w", name, err), a.markUnfinished(name))
			continue
		}
		announcing.Go(func() error {
			a.announce(veth, n)
			return nil
		})
	}
	if err := announcing.Wait(); err != nil {
		return err
	}
	if err := a.warnOfTunnels(maps.Values(w.tunnels)); err != nil {
		return err
	}
	if failed != nil {
		return failed
	}
	return a.store.Update(func(tx *store.Tx) error {
		for _, c := range w.pending {
			if err := tx.ClearPending(c); err != nil {
				return err
			}
		}
		return nil
	})
}

// announcers is how many endpoints are announced at a time: the kernel takes some
// ten milliseconds to close the socket of each, but of many at once.
const announcers = 16

// reconcileVeths sees to it that every local endpoint has its veth and nobody
// else has one. It gives the ifindexes of their host's ends, by the endpoints'
// names, and whose were made anew; it leaves out of w who could not be given
// one: failed says why.
func (a *Agent) reconcileVeths(w *everything, uplinks []host.Uplink) (veths map[string]int, made []string, failed, err error) {
	stray, err := a.host.Veths()
	if err != nil {
		return nil, nil, nil, err
	}
	boot, err := host.BootID()
	if err != nil {
		return nil, nil, nil, err
	}
	tunnels := slices.Collect(maps.Values(w.tunnels))
	sizes := make(map[string]int, len(w.networks))
	for name, n := range w.networks {
		sizes[name] = mtu(n, tunnels, uplinks)
	}
	veths = map[string]int{}
	// In the order in which they were made: the first one in a namespace has the
	// default route.
	byID := func(a, b string) int { return cmp.Compare(w.endpoints[a].ID, w.endpoints[b].ID) }
	for _, name := range slices.SortedFunc(maps.Keys(w.endpoints), byID) {
		e := w.endpoints[name]
		if e.Remote() {
			continue
		}
		ifindex, isNew, err := a.reconcileVeth(e, w.networks[e.Network], sizes[e.Network], boot)
		switch {
		case err == nil:
			delete(stray, e.ID)
			veths[name] = ifindex
			if isNew {
				made = append(made, name)
			}
			continue
		case !errors.Is(err, host.ErrNoNamespace):
			failed = errors.Join(failed, fmt.Errorf("endpoint %q: %w", name, err), a.markUnfinished(name))
			delete(stray, e.ID) // what there is of it may yet do
		case e.Container.Engine == "" && e.Netns.Boot != boot && !e.Netns.Ephemeral():
			a.log.Warn("endpoint waits for its namespace, which is not there since the reboot: load again when it is",
				"endpoint", name, "namespace", e.Netns.Path)
		default:
			a.gone = append(a.gone, e)
			if err := a.forget(w, e); err != nil {
				return nil, nil, nil, err
			}
		}
		w.drop(name)
	}
	for id := range stray {
		if err := a.host.RemoveVeth(id); err != nil {
			return nil, nil, nil, err
		}
	}
	return veths, made, failed, nil
}

// reconcileVeth sees to it that a local endpoint has its veth, and tells
// whether it is new.
func (a *Agent) reconcileVeth(e spec.Endpoint, n spec.Network, mtu int, boot string) (ifindex int, isNew bool, err error) {
	device, err := a.host.FindVeth(e.ID)
	switch {
	case err == nil && device.Up:
		a.resizeEndpoint(resized{e, n, mtu})
		return device.Ifindex, false, nil
	case err == nil:
		err = a.host.RemoveVeth(e.ID)
	case isGone(err):
		err = nil
	}
	if err != nil {
		return 0, false, err
	}
	inode, err := namespaceOf(e, boot)
	if err != nil {
		return 0, false, err
	}
	e.Netns.Inode, e.Netns.Boot = inode, boot
	if err := a.store.Update(func(tx *store.Tx) error { return tx.PutEndpoint(e) }); err != nil {
		return 0, false, err
	}
	ifindex, err = a.host.CreateVeth(vethOf(e, n, mtu))
	return ifindex, true, err
}

// markUnfinished has an endpoint mended by whoever opens the host next.
func (a *Agent) markUnfinished(endpoint string) error {
	return a.store.Update(func(tx *store.Tx) error { return tx.MarkPending(store.KindEndpoint, endpoint) })
}

func isGone(err error) bool { return errors.Is(err, host.ErrNoDevice) }

// namespaceOf looks an endpoint's namespace up. One that is found by a process
// id must still be the one it was, of the kernel that it was of.
func namespaceOf(e spec.Endpoint, boot string) (inode uint64, err error) {
	if e.Handed() {
		return 0, fmt.Errorf("%w: it went with the engine's container", host.ErrNoNamespace)
	}
	inode, err = host.Namespace(e.Netns.Path)
	if err == nil && e.Netns.Ephemeral() && (inode != e.Netns.Inode || boot != e.Netns.Boot) {
		err = fmt.Errorf("%w at %s: another one is", host.ErrNoNamespace, e.Netns.Path)
	}
	return inode, err
}

// vethOf is what an endpoint's veth should be.
func vethOf(e spec.Endpoint, n spec.Network, mtu int) host.Veth {
	v := host.Veth{
		ID:       e.ID,
		Alias:    e.Name,
		Netns:    e.Netns,
		Ifname:   e.Ifname,
		MAC:      e.MAC,
		MTU:      mtu,
		Gateways: defaultRoutes(e, n),
		Routes:   e.Routes,
	}
	for _, address := range e.Addresses {
		v.Addresses = append(v.Addresses, n.Prefix(address))
	}
	return v
}

// forget takes an endpoint out of the store, with its links, ports and flows.
func (a *Agent) forget(w *everything, e spec.Endpoint) error {
	if err := a.store.Update(func(tx *store.Tx) error { return deleteEndpoint(tx, e.Name) }); err != nil {
		return err
	}
	return a.tables.FlushFlows(datapath.FlowFilter{Network: w.networks[e.Network].ID, Addresses: e.Addresses, Endpoint: e.ID})
}

// deleteEndpoint takes an endpoint out of the store with its links and ports.
func deleteEndpoint(tx *store.Tx, name string) error {
	links, err := tx.LinksOf(name)
	if err != nil {
		return err
	}
	for _, l := range links {
		if err := tx.DeleteLink(l.Client, l.Server); err != nil {
			return err
		}
	}
	ports, err := tx.PortsOf(name)
	if err != nil {
		return err
	}
	for _, p := range ports {
		if err := tx.DeletePort(store.PortKeyOf(p)); err != nil {
			return err
		}
	}
	return tx.DeleteEndpoint(name)
}

// isNew tells whether the host's own veth is not the one that the programs
// were loaded for, as when somebody has removed it.
func (a *Agent) isNew(gateway host.Gateway) (bool, error) {
	linked, err := a.tables.Linked(loader.FromHost)
	return len(linked) > 0 && !slices.Contains(linked, gateway.Far), err
}

// addDetour attaches the detour where it is missing: the tables must not lead
// packets to it before. One that is there still has the tables of its own
// program, which may be of another version.
func (a *Agent) addDetour(detour attachment) error {
	linked, err := a.tables.Linked(detour.hook)
	if err != nil {
		return err
	}
	for _, ifindex := range detour.devices {
		if slices.Contains(linked, ifindex) {
			continue
		}
		if err := a.tables.Attach(detour.hook, ifindex); err != nil {
			return err
		}
	}
	return nil
}

// attachment says which devices, by ifindex, are to have a hook's program.
type attachment struct {
	hook    loader.Hook
	devices []int
}

func uplinkHooks(uplinks []host.Uplink) (to, from attachment) {
	devices := make([]int, len(uplinks))
	for i, u := range uplinks {
		devices[i] = u.Ifindex
	}
	return attachment{loader.ToUplink, devices}, attachment{loader.FromUplink, devices}
}

// attachInFront attaches a hook's program in front of the one of another
// version, if all its devices have one: then answers find the flows of both
// versions, whichever program opened them, until the tables are migrated.
func (a *Agent) attachInFront(hook attachment) (bool, error) {
	pending, err := a.tables.MigrationPending()
	if err != nil || !pending {
		return false, err
	}
	for _, ifindex := range hook.devices {
		if attached, err := a.tables.AttachInFront(hook.hook, ifindex); err != nil || !attached {
			return false, err
		}
	}
	return true, nil
}

// attach attaches the current programs to the devices that are to have them,
// and detaches them from all others.
func (a *Agent) attach(wanted []attachment) error {
	for _, w := range wanted {
		linked, err := a.tables.Linked(w.hook)
		if err != nil {
			return err
		}
		for _, ifindex := range linked {
			if slices.Contains(w.devices, ifindex) {
				continue
			}
			if err := a.tables.Detach(w.hook, ifindex); err != nil {
				return err
			}
		}
		for _, ifindex := range w.devices {
			if err := a.tables.Attach(w.hook, ifindex); err != nil {
				return err
			}
		}
	}
	return nil
}
