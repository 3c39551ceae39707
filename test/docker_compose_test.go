package test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ebpnet/ebpnet/internal/testutil"
)

// project is a Compose file: all that differs between Docker's bridge and
// ebpnet is the word after driver.
const project = `version: "2.4"
services:
  web:
    image: %[2]s
    container_name: web
    links: ["redis1:redis"]
    ports: ["8080:7000", "8080:7000/udp"]
    networks: [shop]
  redis1:
    image: %[2]s
    container_name: redis1
    expose: ["7000"]
    networks: [shop]
networks:
  shop:
    driver: %[1]s
    driver_opts:
      com.docker.network.bridge.enable_icc: "%[3]t"
    ipam:
      config: [{subnet: ` + subnet4 + `}]
`

func composed(t *testing.T, s *site) {
	directory := filepath.Join(t.TempDir(), "shop")
	if err := os.Mkdir(directory, 0o755); err != nil {
		t.Fatal(err)
	}
	// Docker's bridge has no links on a network without ICC.
	file := fmt.Sprintf(project, s.driver, testutil.Image, !s.ebpnet())
	if err := os.WriteFile(filepath.Join(directory, "docker-compose.yml"), []byte(file), 0o600); err != nil {
		t.Fatal(err)
	}
	s.docker.Compose(t, directory, "up", "--detach")
	web, redis1 := s.docker.Container(t, "web", "shop_shop"), s.docker.Container(t, "redis1", "shop_shop")
	serve(t, web.Netns, service)
	serve(t, redis1.Netns, service)
	awaitConnection(t, web.Netns, at(redis1.IP4, service))
	if found := web.Exec(t, "nslookup", "redis"); !strings.Contains(found, redis1.IP4.String()) {
		t.Errorf("the alias is not that of the server:\n%s", found)
	}
	for _, network := range protocols {
		connects(t, s.underlay.Outside, network, at(s.IP4, published))
	}
	if s.ebpnet() {
		noneIsAnswered(t, attempt{redis1.Netns, "tcp", "", at(web.IP4, service)})
	}
	s.docker.Compose(t, directory, "down")
	refusesConnections(t, s.underlay.Outside, "tcp", at(s.IP4, published))
}
