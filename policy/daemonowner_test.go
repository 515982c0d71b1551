package policy_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/auberge-vm/auberge/policy"
)

func TestDaemonOwner(t *testing.T) {
	long := strings.Repeat("a", 64)
	for word, want := range map[string]policy.Owner{
		"0":              {UID: 0, Word: "0"},
		"64101":          {UID: 64101, Word: "64101"},
		"4294967295":     {UID: 4294967295, Word: "4294967295"},
		"64101:x":        {UID: 64101, Label: "x", Word: "x"},
		"0:-1":           {UID: 0, Label: "-1", Word: "-1"},
		"64101:" + long:  {UID: 64101, Label: long, Word: long},
		"64101:64102":    {UID: 64101, Label: "64102", Word: "64102"},
		"64101:00000001": {UID: 64101, Label: "00000001", Word: "00000001"},
	} {
		got, err := policy.DaemonOwner(word)
		if err != nil || got != want {
			t.Errorf("%q: %+v, %v; want %+v", word, got, err, want)
		}
		if back := got.DaemonWord(); back != word {
			t.Errorf("%q comes back as %q", word, back)
		}
	}
	for _, word := range []string{"", ":", "x", ":x", "64101:", "064101", "+1", "-1", " 1", "1 ", "1\n", "1:x\n", "1:x:y", "1:a/b",
		"1:" + long + "a", "4294967296", "99999999999999999999", "1:\x00", "0x10", "1_0"} {
		if got, err := policy.DaemonOwner(word); !errors.Is(err, policy.ErrOwner) {
			t.Errorf("%q: %+v, %v", word, got, err)
		}
	}
}
