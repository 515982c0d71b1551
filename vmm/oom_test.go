package vmm_test

import (
	"testing"

	"github.com/auberge-vm/auberge/vmm"
)

func TestOutOfMemory(t *testing.T) {
	for text, want := range map[string]string{
		"0::/auberge.slice/auberge-vm@x.service\n": "/auberge.slice/auberge-vm@x.service",
		"1:name=systemd:/a\n0::/b\n":               "/b",
		"4:memory:/a\n":                            "",
		"":                                         "",
	} {
		if got, _ := vmm.ControlGroup(text); got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
	for events, want := range map[string]bool{
		"low 0\noom 1\noom_kill 1\noom_group_kill 0\n": true,
		"low 0\noom 1\noom_kill 0\noom_group_kill 1\n": false,
		"": false,
	} {
		if got := vmm.OOMKills(events); got != want {
			t.Errorf("%q: %v", events, got)
		}
	}
}
