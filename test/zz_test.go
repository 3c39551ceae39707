package test

import (
	"testing"
	"time"
)

func TestZZ(t *testing.T) {
			h, u := newOutside(t)
			createNet(t, h, "--icc=false")
			serve(t, u.Outside, service)
			web := h.NewContainer(t, "web", "net")
			bad := 0
			for i := range 10000 {
			c := web.MustDial(t, "udp4", at(u.IP4, service))
			if _, err := c.Ask(200*time.Millisecond); err != nil {
				bad++
				if bad > 10 { t.Fatal(i) }
			}
			c.Close()
			}
			t.Log(bad, h.Ebpnet(t, "stats"))
}
