package agent

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/ebpnet/ebpnet/datapath"
	"github.com/ebpnet/ebpnet/internal/host"
	"github.com/ebpnet/ebpnet/internal/spec"
	"github.com/ebpnet/ebpnet/internal/store"
	"github.com/ebpnet/ebpnet/loader"
)

// XDP does what TC does, only earlier. So what keeps an uplink from having it is
// told of, and stops nothing, unless somebody has just asked for it by name.

// nothingLost is why auto chooses native XDP.
const nothingLost = "its driver can, and nothing is lost by it"

// plannedUplink is an uplink with the XDP that it is to have.
type plannedUplink struct {
	host.Uplink
	xdp loader.XDPMode // "": none
	why error          // it has not what was asked for; nil if it has, or nothing was
}

// isForced tells whether a mode is asked for by name, so that nothing else will
// do.
func isForced(mode spec.XDPMode) bool { return mode == spec.XDPNative || mode == spec.XDPGeneric }

// isFor tells whether a mode may be what is wanted: auto chooses native or none.
func isFor(mode, wanted spec.XDPMode) bool {
	return mode == wanted || mode == spec.XDPNative && wanted == spec.XDPAuto
}

// choose gives the mode of XDP that a device is to have, or why it is to have
// none.
func choose(wanted spec.XDPMode, can host.XDP) (loader.XDPMode, error) {
	switch wanted {
	case spec.XDPGeneric:
		if can.NotGeneric != nil {
			return "", can.NotGeneric
		}
		return loader.XDPGeneric, nil
	case spec.XDPNative, spec.XDPAuto:
		if can.NotNative != nil {
			return "", can.NotNative
		}
		if wanted == spec.XDPAuto && can.Costly != nil {
			return "", can.Costly
		}
		return loader.XDPNative, nil
	}
	return "", nil
}

// planXDP chooses for each uplink.
func (a *Agent) planXDP(wanted spec.XDPMode, uplinks []host.Uplink) ([]plannedUplink, error) {
	planned := make([]plannedUplink, len(uplinks))
	for i, u := range uplinks {
		planned[i].Uplink = u
		if wanted.Effective() == spec.XDPOff {
			continue
		}
		can, err := a.host.XDP(u.Name)
		if isGone(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		planned[i].xdp, planned[i].why = choose(wanted, can)
	}
	return planned, nil
}

func anyXDP(planned []plannedUplink) bool {
	return slices.ContainsFunc(planned, func(u plannedUplink) bool { return u.xdp != "" })
}

// checkXDP finds out, before anything is changed, whether the uplinks that are
// there can have a mode that is asked for by name.
func (a *Agent) checkXDP(wanted spec.XDPMode, uplinks []string) error {
	if !isForced(wanted) {
		return nil
	}
	for _, name := range uplinks {
		u, err := a.host.Uplink(name)
		if isGone(err) {
			continue
		}
		if err != nil {
			return err
		}
		can, err := a.host.XDP(name)
		if err != nil {
			return err
		}
		mode, err := choose(wanted, can)
		if err == nil {
			err = loader.TryXDP(a.place.Pins, u.Ifindex, mode)
		}
		if err != nil {
			return fmt.Errorf("uplink %s cannot have %s XDP: %w", name, wanted, err)
		}
	}
	return nil
}

// attachXDP has the uplinks run the current program of XDP as planned, and no
// other device, and tells why one does not.
func (a *Agent) attachXDP(wanted spec.Host, planned []plannedUplink) error {
	var keep []int
	for _, u := range planned {
		if u.xdp != "" {
			keep = append(keep, u.Ifindex)
		}
	}
	if err := a.tables.KeepXDP(keep); err != nil {
		return err
	}
	without := map[string]string{}
	for _, u := range planned {
		if u.xdp != "" {
			if u.why = a.tables.AttachXDP(u.Ifindex, u.xdp); u.why != nil {
				// An older one that could not be replaced must not go on.
				if err := a.tables.DetachXDP(u.Ifindex); err != nil {
					return err
				}
			}
		}
		if u.why == nil {
			continue
		}
		without[u.Name] = OneLine(u.why)
		if before := wanted.WithoutXDP[u.Name]; errors.Is(u.why, loader.ErrNoXDP) && strings.HasPrefix(before, without[u.Name]) {
			without[u.Name] = before // only load knows the kernel's reason
		}
		if a.fresh || wanted.WithoutXDP[u.Name] != without[u.Name] {
			tell := a.log.Warn
			if wanted.XDP == spec.XDPAuto {
				tell = a.log.Info
			}
			tell("uplink is without XDP, TC does its work", "uplink", u.Name, "wanted", wanted.XDP, "why", without[u.Name])
		}
	}
	if maps.Equal(without, wanted.WithoutXDP) {
		return nil
	}
	return a.store.Update(func(tx *store.Tx) error {
		now, _, err := tx.Host()
		if err != nil {
			return err
		}
		now.WithoutXDP = without
		return tx.PutHost(now)
	})
}

// followXDP is attachXDP while a host is followed. Where XDP comes to a host that
// had none, its endpoints have to be made ready.
func (a *Agent) followXDP(wanted spec.Host, planned []plannedUplink) error {
	before, err := a.tables.XDPAttached()
	if err != nil {
		return err
	}
	if err := a.attachXDP(wanted, planned); err != nil {
		return err
	}
	now, err := a.tables.XDPAttached()
	if err == nil && len(before) == 0 && len(now) > 0 {
		err = a.Reconcile()
	}
	return err
}

// napi makes an endpoint ready for frames from XDP if some uplink has XDP, and
// tells whether it is.
func (a *Agent) napi(v host.Veth) (bool, error) {
	var wanted spec.Host
	err := a.store.View(func(tx *store.Tx) (err error) {
		wanted, _, err = tx.Host()
		return err
	})
	if err != nil || wanted.XDP.Effective() == spec.XDPOff {
		return false, err
	}
	attached, err := a.tables.XDPAttached()
	return len(attached) > 0 && a.ensureNAPI(v), err
}

// ensureNAPI makes an endpoint ready for frames from XDP, and tells whether it
// is. One that is not gets them by TC.
func (a *Agent) ensureNAPI(v host.Veth) bool {
	on, err := a.host.EnsureNAPI(v)
	// A namespace that goes takes the endpoint along; an engine takes interfaces
	// back.
	if err != nil && !errors.Is(err, host.ErrNoNamespace) && !errors.Is(err, host.ErrStrangeInterface) {
		a.log.Warn("endpoint takes no packets from XDP", "endpoint", v.Alias, "error", err)
	}
	return on
}

// tellNAPI writes an endpoint anew that an engine has taken.
func (a *Agent) tellNAPI(e spec.Endpoint, n spec.Network) error {
	on, err := a.napi(vethOf(e, n, 0))
	if err != nil || !on {
		return err
	}
	device, err := a.host.FindVeth(e.ID)
	if isGone(err) {
		return nil
	}
	if err != nil {
		return err
	}
	entry := endpointEntry(e, n, device.Ifindex, spec.Tunnel{})
	entry.NAPI = on
	return a.tables.PutEndpoint(entry)
}

// UplinkXDP is how an uplink has XDP, and why so.
type UplinkXDP struct {
	Uplink string       `json:"uplink"`
	Wanted spec.XDPMode `json:"wanted"`
	Mode   spec.XDPMode `json:"mode"`
	Why    string       `json:"why"`
}

// XDPOf tells how the wanted uplinks have XDP; tables is nil if nothing is
// loaded.
func XDPOf(wanted spec.Host, tables *datapath.Tables) ([]UplinkXDP, error) {
	h, err := host.Open()
	if err != nil {
		return nil, err
	}
	defer h.Close()
	attached := map[int]loader.XDPMode{}
	if tables != nil {
		if attached, err = tables.XDPAttached(); err != nil {
			return nil, err
		}
	}
	found := make([]UplinkXDP, len(wanted.Uplinks))
	for i, name := range wanted.Uplinks {
		found[i] = UplinkXDP{Uplink: name, Wanted: wanted.XDP.Effective(), Mode: spec.XDPOff}
		u, err := h.Uplink(name)
		if err != nil && !isGone(err) && !errors.Is(err, host.ErrUnfitUplink) {
			return nil, err
		}
		switch mode, on := attached[u.Ifindex]; {
		case err != nil:
			found[i].Why = OneLine(err)
		case on && !isFor(spec.XDPMode(mode), found[i].Wanted):
			found[i].Mode, found[i].Why = spec.XDPMode(mode), fmt.Sprintf("%s is asked for: 'ebpnet load' changes it", found[i].Wanted)
		case on && found[i].Wanted == spec.XDPAuto:
			found[i].Mode, found[i].Why = spec.XDPMode(mode), nothingLost
		case on:
			found[i].Mode, found[i].Why = spec.XDPMode(mode), "asked for"
		case tables == nil:
			found[i].Why = "not loaded"
		case found[i].Wanted == spec.XDPOff:
			found[i].Why = "not asked for"
		case wanted.WithoutXDP[name] != "":
			found[i].Why = wanted.WithoutXDP[name]
		default:
			found[i].Why = "it is not attached: 'ebpnet load' attaches it"
		}
	}
	return found, nil
}

// DeviceXDP is which XDP a device could have.
type DeviceXDP struct {
	Device  string       `json:"device"`
	Native  bool         `json:"native"` // as far as its driver says
	Generic bool         `json:"generic"`
	Auto    spec.XDPMode `json:"auto"` // what XDPAuto would choose
	Why     string       `json:"why"`
}

// CheckXDP tells which XDP the uplinks could have, or all physical devices and
// those that default routes lead to if there are none.
func CheckXDP(p Place, uplinks []string) ([]DeviceXDP, error) {
	h, err := host.Open()
	if err != nil {
		return nil, err
	}
	defer h.Close()
	if len(uplinks) == 0 {
		defaults, err := h.DefaultUplinks()
		if err != nil {
			return nil, err
		}
		physical, err := h.Physical()
		if err != nil {
			return nil, err
		}
		uplinks = append(defaults, physical...)
		slices.Sort(uplinks)
		uplinks = slices.Compact(uplinks)
	}
	found := make([]DeviceXDP, len(uplinks))
	for i, name := range uplinks {
		if found[i], err = checkDevice(h, p, name); err != nil {
			return nil, err
		}
	}
	return found, nil
}

func checkDevice(h *host.Host, p Place, name string) (DeviceXDP, error) {
	d := DeviceXDP{Device: name, Auto: spec.XDPOff}
	u, err := h.Uplink(name)
	if isGone(err) || errors.Is(err, host.ErrUnfitUplink) {
		d.Why = OneLine(err)
		return d, nil
	}
	if err != nil {
		return d, err
	}
	can, err := h.XDP(name)
	if err != nil {
		return d, err
	}
	err = loader.CheckXDP(p.Pins, u.Ifindex)
	if errors.Is(err, loader.ErrForeignXDP) {
		d.Why = OneLine(err)
		return d, nil
	}
	if err != nil {
		return d, err
	}
	d.Native, d.Generic = can.NotNative == nil, can.NotGeneric == nil
	mode, why := choose(spec.XDPAuto, can)
	switch {
	case why != nil:
		d.Why = OneLine(why)
	default:
		d.Auto, d.Why = spec.XDPMode(mode), nothingLost
	}
	return d, nil
}
