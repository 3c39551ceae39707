package cni

import (
	"net"
	"net/netip"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/ebpnet/ebpnet/internal/agent"
	"github.com/ebpnet/ebpnet/internal/host"
	"github.com/ebpnet/ebpnet/internal/spec"
)

// previous gives the result of the plugins before this one, or an empty one.
func (c *call) previous() (*types100.Result, error) {
	if err := version.ParsePrevResult(&c.conf.PluginConf); err != nil {
		return nil, types.NewError(types.ErrDecodingFailure, agent.OneLine(err), "")
	}
	if c.conf.PrevResult == nil {
		return &types100.Result{CNIVersion: types100.ImplementedSpecVersion}, nil
	}
	result, err := types100.NewResultFromResult(c.conf.PrevResult)
	if err != nil {
		return nil, types.NewError(types.ErrDecodingFailure, "prevResult: "+agent.OneLine(err), "")
	}
	return result, nil
}

// tell adds an endpoint to the result. What is not of the network, it takes
// from the kernel.
func (c *call) tell(result *types100.Result, e spec.Endpoint, n spec.Network) error {
	outside, err := host.Look(host.VethName(e.ID))
	if err != nil {
		return err
	}
	inside, err := host.LookInside(e.Netns.Path, e.Ifname)
	if err != nil {
		return err
	}
	withMTU, err := version.GreaterThanOrEqualTo(c.conf.CNIVersion, mtuVersion)
	if err != nil {
		return err
	}
	for _, d := range []host.Interface{outside, inside} {
		i := &types100.Interface{Name: d.Name, Mac: d.MAC.String()}
		if withMTU {
			i.Mtu = d.MTU
		}
		result.Interfaces = append(result.Interfaces, i)
	}
	index := len(result.Interfaces) - 1
	result.Interfaces[index].Sandbox = c.args.Netns
	for _, p := range prefixesOf(e, n) {
		ip := &types100.IPConfig{Interface: types100.Int(index), Address: netOf(p)}
		if !n.Internal {
			ip.Gateway = n.Gateway(p.Addr()).AsSlice()
		}
		result.IPs = append(result.IPs, ip)
	}
	for _, r := range inside.Routes {
		result.Routes = append(result.Routes, &types.Route{Dst: netOf(r.Destination), GW: r.Gateway.AsSlice()})
	}
	if !c.conf.DNS.IsEmpty() {
		result.DNS = c.conf.DNS
	}
	return nil
}

// prefixesOf gives an endpoint's addresses with their subnets' lengths.
func prefixesOf(e spec.Endpoint, n spec.Network) []netip.Prefix {
	prefixes := make([]netip.Prefix, len(e.Addresses))
	for i, address := range e.Addresses {
		prefixes[i] = n.Prefix(address)
	}
	return prefixes
}

func netOf(p netip.Prefix) net.IPNet {
	return net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func prefixOf(n net.IPNet) netip.Prefix {
	bits, _ := n.Mask.Size()
	return netip.PrefixFrom(addressOf(n.IP), bits)
}

// addressOf gives the zero Addr for no address.
func addressOf(ip net.IP) netip.Addr {
	address, _ := netip.AddrFromSlice(ip)
	return address.Unmap()
}
