package maitred

import (
	"context"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/auberge-vm/auberge/guest/core/coretest"
	pb "github.com/auberge-vm/auberge/protos/vmtoolspb"
	"golang.org/x/sys/unix"
)

// toolsDisk makes a tools disk whose manager of containers is a script.
func toolsDisk(t *testing.T, script string) (device string) {
	t.Helper()
	dir := t.TempDir()
	if err := os.MkdirAll(dir+"/tools/bin", 0o755); err != nil {
		t.Fatal(err)
	}
	if script != "" {
		if err := os.WriteFile(dir+"/tools/bin/tremplin", []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	out, err := exec.Command("sh", "-ec", "tar -C "+dir+"/tools -c . | tar2sqfs --quiet "+dir+"/tools.squashfs").CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	packed, err := os.ReadFile(dir + "/tools.squashfs")
	if err != nil {
		t.Fatal(err)
	}
	device, file := coretest.Disk(t, int64(len(packed)+4095)&^4095)
	if err := os.WriteFile(file, packed, 0o600); err != nil {
		t.Fatal(err)
	}
	return device
}

// A VM with the tools disk gets its containers' manager, once, with what the
// host said of containers; at the end the manager is told first.
func TestStartTerminaStartsContainers(t *testing.T) {
	if !coretest.Isolated(t, unix.CLONE_NEWNS) {
		return
	}
	dir := coretest.Dir(t)
	fifo := t.TempDir() + "/fifo"
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	tools := toolsDisk(t, `#!/bin/sh
trap 'echo told > `+fifo+`; exit' PWR
echo "$0 $*, $INCUS_DIR $LXD_IPV4_SUBNET $ALLOW_PRIVILEGED_CONTAINERS" > `+fifo+`
while :; do sleep 0.01; done
`)
	prepared := 0
	client, server := serve(t, func(s *Server) {
		s.statefulDir, s.toolsDir, s.reservedVsock = dir+"/stateful", dir+"/tools", true
		s.findDisk = func(serial string) (string, error) {
			if serial != "tools" {
				t.Errorf("looked for a disk %q", serial)
			}
			return tools, nil
		}
		s.prepareContainers = func(context.Context, []string) { prepared++ }
	})
	device, _ := coretest.Disk(t, diskSize)
	request := &pb.StartTerminaRequest{StatefulDevice: device, LxdIpv4Subnet: "100.115.92.193/28", AllowPrivilegedContainers: true}
	read := func() string {
		t.Helper()
		line, err := os.ReadFile(fifo) // as soon as somebody writes
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(line))
	}
	if _, err := client.StartTermina(t.Context(), request); err != nil {
		t.Fatal(err)
	}
	if got, want := read(), dir+"/tools/bin/tremplin --reserved-only, /mnt/stateful/incus 100.115.92.193/28 true"; got != want {
		t.Errorf("the manager runs as %q, want %q", got, want)
	}
	if _, err := client.StartTermina(t.Context(), request); err != nil {
		t.Fatal(err)
	}
	if prepared != 1 {
		t.Errorf("prepared %d times", prepared)
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil || strings.Count(string(mounts), dir+"/tools squashfs ro,nosuid,nodev") != 1 {
		t.Errorf("mounted:\n%s", mounts)
	}
	server.services.Stop()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		server.endContainers()
	}()
	if got := read(); got != "told" {
		t.Errorf("at the end the manager says %q", got)
	}
	<-ended
}

// VMs without containers start as ever.
func TestStartTerminaWithoutContainers(t *testing.T) {
	if !coretest.Isolated(t, unix.CLONE_NEWNS) {
		return
	}
	dir := coretest.Dir(t)
	// Made before there is a server, who collects each process that ends.
	empty := toolsDisk(t, "")
	var tools string
	client, server := serve(t, func(s *Server) {
		s.statefulDir, s.toolsDir = dir+"/stateful", dir+"/tools"
		s.findDisk = func(string) (string, error) { return tools, nil }
		s.prepareContainers = func(context.Context, []string) { t.Error("prepared") }
	})
	device, _ := coretest.Disk(t, diskSize)
	for _, tools = range []string{"", "/dev/null", empty} {
		resp, err := client.StartTermina(t.Context(), &pb.StartTerminaRequest{StatefulDevice: device})
		if err != nil || resp.MountResult != pb.StartTerminaResponse_SUCCESS {
			t.Errorf("with the tools %q: %v, %v", tools, resp, err)
		}
		if server.containers {
			t.Errorf("with the tools %q there are containers", tools)
		}
	}
}
