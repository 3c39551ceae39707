package host

import (
	"errors"
	"strings"
	"testing"

	"github.com/ebpnet/ebpnet/internal/spec"
	"github.com/ebpnet/ebpnet/internal/testutil"
)

func TestXDPOfDevices(t *testing.T) {
	t.Parallel()
	n := testutil.NewNetns(t, "host")
	n.Run(t, "ip", "link", "add", "wire", "type", "veth", "peer", "name", "end")
	n.Run(t, "ip", "link", "add", "bridge", "type", "bridge")
	// More queues send than receive at the other end.
	n.Run(t, "ip", "link", "add", "narrow", "numrxqueues", "1", "type", "veth", "peer", "name", "wide", "numtxqueues", "4")
	said := func(err error) string {
		if err == nil {
			return ""
		}
		return err.Error()
	}
	for device, want := range map[string]struct{ native, costly string }{
		"wire":   {"", "segmentation offload"},
		"bridge": {"no native XDP", ""},
		"narrow": {"no native XDP", "segmentation offload"},
	} {
		in(t, n, func(h *Host) error {
			x, err := h.XDP(device)
			for got, want := range map[string]string{said(x.NotNative): want.native, said(x.Costly): want.costly, said(x.NotGeneric): ""} {
				if !strings.Contains(got, want) || want == "" && got != "" {
					t.Errorf("%s: %q, want %q", device, got, want)
				}
			}
			return err
		})
	}
	in(t, n, func(h *Host) error {
		if _, err := h.XDP("nodev0"); !errors.Is(err, ErrNoDevice) {
			t.Errorf("no device: %v", err)
		}
		return nil
	})
}

func TestOffloads(t *testing.T) {
	t.Parallel()
	n := testutil.NewNetns(t, "host")
	n.Run(t, "ip", "link", "add", "wire", "type", "veth", "peer", "name", "end")
	for _, state := range []string{"on", "off"} {
		n.Run(t, "ethtool", "-K", "wire", "rxvlan", state, "gro", state)
		in(t, n, func(*Host) error {
			on, err := offloads("wire")
			for _, name := range []string{offloadVLANTags, "rx-gro"} {
				if is, known := on[name]; !known || is != (state == "on") {
					t.Errorf("%s is %s: %t, %t", name, state, is, known)
				}
			}
			return err
		})
	}
	listed := n.Run(t, "ethtool", "-k", "wire")
	in(t, n, func(*Host) error {
		on, err := offloads("wire")
		for _, name := range []string{offloadHardwareGRO, offloadVLANTags} {
			// ethtool calls some by older names of its own.
			if _, known := on[name]; !known || name == offloadHardwareGRO && !strings.Contains(listed, name) {
				t.Errorf("the kernel knows no %s", name)
			}
		}
		if _, known := on[offloadLRO]; !known {
			t.Errorf("the kernel knows no %s", offloadLRO)
		}
		return err
	})
}

func TestEnsureNAPI(t *testing.T) {
	t.Parallel()
	host, container := testutil.NewNetns(t, "host"), testutil.NewNetns(t, "container")
	placed := Veth{ID: 1, Netns: spec.Netns{Path: container.Path()}, Ifname: "eth0", MAC: [6]byte{2, 0, 0, 0, 0, 2}, MTU: 1500}
	handed := Veth{ID: 2, MAC: [6]byte{2, 0, 0, 0, 0, 3}, MTU: 1500}
	in(t, host, func(h *Host) error {
		_, err := h.CreateVeth(placed)
		if err == nil {
			_, err = h.CreateVeth(handed)
		}
		return err
	})
	ready := func(v Veth, want bool) {
		t.Helper()
		in(t, host, func(h *Host) error {
			on, err := h.EnsureNAPI(v)
			if on != want {
				t.Errorf("endpoint %d takes packets by NAPI: %t, want %t", v.ID, on, want)
			}
			return err
		})
	}
	ready(placed, true)
	ready(placed, true)
	if listed := container.Run(t, "ethtool", "-k", "eth0"); !strings.Contains(listed, "generic-receive-offload: on") {
		t.Errorf("GRO is not on:\n%s", listed)
	}
	ready(handed, true)
	// An engine takes it, and does not say where to at first.
	host.Run(t, "ip", "link", "set", HandedName(handed.ID), "netns", container.Name)
	ready(handed, false)
	handed.Netns = placed.Netns
	ready(handed, true)

	gone := placed
	gone.Netns.Path += "-gone"
	in(t, host, func(h *Host) error {
		if on, err := h.EnsureNAPI(gone); on || !errors.Is(err, ErrNoNamespace) {
			t.Errorf("without its namespace: %t, %v", on, err)
		}
		return nil
	})
}
