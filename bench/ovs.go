package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
)

// ovsSchema is of Open vSwitch's database, as Debian installs it.
const ovsSchema = "/usr/share/openvswitch/vswitch.ovsschema"

// openVSwitch starts Open vSwitch in a host, on the CPU that client and server
// share, and gives what runs ovs-vsctl there.
func (l *lab) openVSwitch(host string) func(args ...string) bool {
	directory := filepath.Join(os.TempDir(), host)
	l.directory(directory)
	database, socket := filepath.Join(directory, "conf.db"), "unix:"+filepath.Join(directory, "db.sock")
	control := func(program string) string { return "--unixctl=" + filepath.Join(directory, program+".ctl") }
	vsctl := func(args ...string) bool {
		return l.in(host, slices.Concat([]string{"ovs-vsctl", "--db=" + socket, "--retry", "--timeout=20"}, args)...)
	}
	l.run("ovsdb-tool", "create", database, ovsSchema)
	l.daemon(host, "ovsdb-server", database, "--remote=p"+socket, control("ovsdb-server"), "-vconsole:off")
	vsctl("--no-wait", "init")
	l.daemon(host, "ovs-vswitchd", socket, control("ovs-vswitchd"), "-vconsole:off")
	return vsctl
}

// daemon starts a program in a namespace, on the CPU that client and server
// share. It is killed by close.
func (l *lab) daemon(ns string, args ...string) {
	l.try(func() error {
		args = inNetns(ns, slices.Concat([]string{"taskset", "--cpu-list", strconv.Itoa(l.cpu)}, args)...)
		cmd := exec.Command(args[0], args[1:]...)
		cmd.SysProcAttr = apart()
		if err := cmd.Start(); err != nil {
			return fmt.Errorf("start %s: %w", args[0], err)
		}
		l.daemons = append(l.daemons, cmd.Process.Pid)
		l.undo = append(l.undo, func() error {
			if err := cmd.Process.Kill(); err != nil {
				return fmt.Errorf("end %s: %w", args[0], err)
			}
			_ = cmd.Wait() // says that it was killed
			return nil
		})
		return nil
	})
}

// dropIngress drops what arrives at a device before the host's own stack looks
// at it. Packet sockets and counters see it first.
func (l *lab) dropIngress(ns, device string) {
	l.runWith(fmt.Sprintf(`table netdev %[1]s {
	chain ingress {
		type filter hook ingress device %[1]s priority 0; policy drop;
	}
}
`, device), inNetns(ns, "nft", "-f", "-")...)
}
