package spec

import (
	"encoding/json"
	"strings"
	"testing"
)

func TestTrunk(t *testing.T) {
	t.Parallel()
	local := EndpointOptions{Name: "vmhost", Network: "net", Netns: "vmhost", Ifname: "eth0", Trunk: true}
	e, err := NewEndpoint(local)
	if err != nil || !e.Trunk {
		t.Errorf("%+v, %v", e, err)
	}
	text, err := json.Marshal(e)
	if err != nil || !strings.Contains(string(text), `"trunk":true`) {
		t.Errorf("%s, %v", text, err)
	}
	local.Trunk = false
	if e, err = NewEndpoint(local); err != nil || e.Trunk {
		t.Errorf("not said: %+v, %v", e, err)
	}
	_, err = NewEndpoint(EndpointOptions{
		Name: "vmhost", Network: "net", Tunnel: "peer", Addresses: []string{"10.88.0.2"}, MAC: "02:00:00:00:00:02", Trunk: true,
	})
	mustBeInvalid(t, "behind a tunnel", err, "no trunk")
}
