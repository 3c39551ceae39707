package testutil

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

const (
	// ovsSchema is where Debian keeps the schema of Open vSwitch's database.
	ovsSchema = "/usr/share/openvswitch/vswitch.ovsschema"
	// ovsUnderlay is the bridge that holds the host's addresses and its uplink.
	ovsUnderlay = "br-phy"
)

// The datapaths of Open vSwitch, as it calls them.
const (
	ovsUserspace = "netdev"
	ovsKernel    = "system"
)

// OVS is a host whose containers are joined by Open vSwitch instead of ebpnet:
// another implementation of GRE.
type OVS struct {
	*Netns
	IP4, IP6 netip.Addr // on the underlay

	datapath  string
	directory string                // of the database and all sockets
	ports     map[*Container]string // their devices on the host
}

// NewOVS starts Open vSwitch with its userspace datapath on a host of the
// underlay on which ebpnet is not loaded, until the test ends. The host's
// addresses move from its uplink to Open vSwitch's bridge.
func NewOVS(t testing.TB, h *Host, u *Underlay) *OVS {
	t.Helper()
	o := startOVS(t, h, ovsUserspace)
	o.Vsctl(t, "add-br", ovsUnderlay, "--", "set", "bridge", ovsUnderlay, "datapath_type="+o.datapath)
	o.takeOver(t, Uplink)
	o.Vsctl(t, "add-port", ovsUnderlay, Uplink)
	o.Run(t, "ip", "addr", "flush", "dev", Uplink)
	o.Run(t, "ip", "link", "set", ovsUnderlay, "up")
	o.Run(t, "ip", "addr", "add", withBits(o.IP4), "dev", ovsUnderlay)
	o.Run(t, "ip", "addr", "add", withBits(o.IP6), "dev", ovsUnderlay, "nodad")
	o.wholePackets(t, Uplink)
	u.Outside.wholePackets(t, peerOf(t, o.Netns, Uplink, u.Outside))
	return o
}

// NewKernelOVS is NewOVS with the datapath in the kernel, which sends GRE by the
// host's own routes: the host's addresses stay on its uplink.
func NewKernelOVS(t testing.TB, h *Host) *OVS {
	t.Helper()
	return startOVS(t, h, ovsKernel)
}

// startOVS starts the daemons.
func startOVS(t testing.TB, h *Host, datapath string) *OVS {
	t.Helper()
	o := &OVS{Netns: h.Netns, IP4: h.IP4, IP6: h.IP6, datapath: datapath, directory: t.TempDir(), ports: make(map[*Container]string)}
	database := filepath.Join(o.directory, "conf.db")
	o.Run(t, "ovsdb-tool", "create", database, ovsSchema)
	o.start(t, "ovsdb-server", "--remote=p"+o.database(), database)
	Eventually(t, "the database listens", func() bool {
		_, err := os.Stat(o.socket())
		return err == nil
	})
	o.Vsctl(t, "--no-wait", "--retry", "init")
	o.start(t, "ovs-vswitchd", o.database())
	return o
}

// start starts a daemon of Open vSwitch, with every file of its in the host's
// directory. It is ended with the test.
func (o *OVS) start(t testing.TB, name string, args ...string) {
	t.Helper()
	environment := []string{"OVS_RUNDIR=" + o.directory, "OVS_DBDIR=" + o.directory, "OVS_LOGDIR=" + o.directory}
	daemon := []string{name, "--no-chdir", "-vsyslog:off", "--unixctl=" + o.control(name)}
	o.Start(t, "env", append(append(environment, daemon...), args...)...)
}

func (o *OVS) socket() string { return filepath.Join(o.directory, "db.sock") }

func (o *OVS) database() string { return "unix:" + o.socket() }

func (o *OVS) control(daemon string) string { return filepath.Join(o.directory, daemon+".ctl") }

// Vsctl runs ovs-vsctl, which waits until Open vSwitch has done what it was
// told. What is changed, and not new, may want Settle after it.
func (o *OVS) Vsctl(t testing.TB, args ...string) string {
	t.Helper()
	limit := "--timeout=" + strconv.Itoa(int(patience.Seconds()))
	return o.Run(t, "ovs-vsctl", append([]string{"--db=" + o.database(), limit}, args...)...)
}

// Settle waits until Open vSwitch no longer sends packets as it did before a
// change. That takes up to half a second.
func (o *OVS) Settle(t testing.TB) {
	t.Helper()
	o.Appctl(t, "revalidator/wait")
}

// Appctl runs ovs-appctl for ovs-vswitchd.
func (o *OVS) Appctl(t testing.TB, args ...string) string {
	t.Helper()
	return o.Run(t, "ovs-appctl", append([]string{"--target=" + o.control("ovs-vswitchd")}, args...)...)
}

// takeOver leaves a device to Open vSwitch alone, which reads it by a packet
// socket: otherwise the host would answer what arrives there a second time.
func (o *OVS) takeOver(t testing.TB, device string) {
	t.Helper()
	o.Run(t, "nft", "add table netdev ovs; add chain netdev ovs "+device+
		" { type filter hook ingress device "+device+" priority 0; policy drop; }")
}

// wholePackets makes devices send packets complete with their checksums, and
// no superframes: Open vSwitch knows neither.
func (n *Netns) wholePackets(t testing.TB, devices ...string) {
	t.Helper()
	for _, device := range devices {
		n.Run(t, "ethtool", "-K", device, "tx", "off")
	}
}

// peerOf names the other end of a veth, which is in the namespace of peer.
func peerOf(t testing.TB, n *Netns, device string, peer *Netns) (name string) {
	t.Helper()
	const label = "peer_ifindex: "
	_, after, found := strings.Cut(n.Run(t, "ethtool", "-S", device), label)
	number, _, _ := strings.Cut(after, "\n")
	index, err := strconv.Atoi(number)
	if !found || err != nil {
		t.Fatalf("in %s: %s is no veth: %v", n.Name, device, err)
	}
	peer.Do(func() {
		var other *net.Interface
		if other, err = net.InterfaceByIndex(index); err == nil {
			name = other.Name
		}
	})
	if err != nil {
		t.Fatalf("the peer of %s in %s: %v", device, n.Name, err)
	}
	return name
}

// OVSBridge is a layer-2 segment of Open vSwitch.
type OVSBridge struct {
	Name string
	ovs  *OVS
}

// NewBridge makes a bridge without ports.
func (o *OVS) NewBridge(t testing.TB, name string) *OVSBridge {
	t.Helper()
	o.Vsctl(t, "add-br", name, "--", "set", "bridge", name, "datapath_type="+o.datapath)
	return &OVSBridge{Name: name, ovs: o}
}

// AddGRE gives the bridge a GRE port with a name to another host, with options
// as in `ovs-vsctl set interface NAME options:KEY=VALUE`: key=42, csum=true. It
// waits until Open vSwitch's userspace datapath knows the way there.
func (b *OVSBridge) AddGRE(t testing.TB, name string, remote netip.Addr, options ...string) {
	t.Helper()
	add := []string{"add-port", b.Name, name, "--", "set", "interface", name, "type=gre", fmt.Sprintf("options:remote_ip=%q", remote)}
	for _, option := range options {
		add = append(add, "options:"+option)
	}
	b.ovs.Vsctl(t, add...)
	if b.ovs.datapath == ovsKernel {
		return
	}
	Eventually(t, "Open vSwitch knows "+remote.String(), func() bool {
		// It learns from the answers to what the host asks.
		b.ovs.Run(t, "ip", "neigh", "flush", "dev", ovsUnderlay)
		_, err := b.ovs.Try("ping", "-n", "-c", "1", "-W", "0.2", remote.String())
		return err == nil && strings.Contains(b.ovs.Appctl(t, "tnl/neigh/show"), remote.String()+" ")
	})
}

// NewContainer makes a namespace with an interface on the bridge. It is no
// endpoint of ebpnet, and its Host is nil.
func (b *OVSBridge) NewContainer(t testing.TB, name string, mtu int, addresses ...netip.Prefix) *Container {
	t.Helper()
	c := &Container{Netns: NewNetns(t, name)}
	c.prepare(t)
	port := fmt.Sprintf("port%d", len(b.ovs.ports)+1)
	b.ovs.ports[c] = port
	texts := make([]string, len(addresses))
	for i, a := range addresses {
		texts[i] = a.String()
		if a.Addr().Is4() {
			c.IP4 = a.Addr()
		} else {
			c.IP6 = a.Addr()
		}
	}
	Wire(t, b.ovs.Netns, port, nil, c.Netns, Device, texts)
	if b.ovs.datapath == ovsUserspace {
		b.ovs.takeOver(t, port)
		c.wholePackets(t, Device)
	}
	c.Run(t, "ip", "link", "set", Device, "mtu", strconv.Itoa(mtu))
	b.ovs.Vsctl(t, "add-port", b.Name, port)
	c.Do(func() {
		dev, err := net.InterfaceByName(Device)
		if err != nil {
			t.Fatal(err)
		}
		c.MAC = dev.HardwareAddr
	})
	return c
}

// Mute makes the bridge take no more of what a container sends.
func (b *OVSBridge) Mute(t testing.TB, c *Container) { t.Helper(); b.modifyPort(t, c, "no-receive") }

// Unmute undoes Mute.
func (b *OVSBridge) Unmute(t testing.TB, c *Container) { t.Helper(); b.modifyPort(t, c, "receive") }

func (b *OVSBridge) modifyPort(t testing.TB, c *Container, action string) {
	t.Helper()
	control := "unix:" + filepath.Join(b.ovs.directory, b.Name+".mgmt")
	b.ovs.Run(t, "ovs-ofctl", "mod-port", control, b.ovs.ports[c], action)
	b.ovs.Settle(t)
}
