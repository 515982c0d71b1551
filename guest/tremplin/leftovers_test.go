package tremplin

import (
	"testing"

	"github.com/auberge-vm/auberge/guest/tremplin/incus"
	"github.com/google/go-cmp/cmp"
)

// Whatever an import that replaces a container was at when it ended, one of
// the two containers has the name after the next start; what has none is
// removed as a leftover.
func TestAReplacedContainerIsNotLost(t *testing.T) {
	final := incus.Instance{Name: "auberge-import-1", Config: map[string]string{finalKey: "penguin"}}
	away := incus.Instance{Name: "auberge-old-2", Config: map[string]string{awayKey: "penguin"}}
	unnamed := incus.Instance{Name: "auberge-old-3", Config: map[string]string{awayKey: "auberge-old-3"}}
	old := incus.Instance{Name: "penguin", Config: map[string]string{awayKey: "penguin"}}
	for name, c := range map[string]struct {
		all  []incus.Instance
		want []renaming
	}{
		"before the old one went": {[]incus.Instance{final, old}, nil},
		"between the two":         {[]incus.Instance{away, final}, []renaming{{final.Name, "penguin"}}},
		"nobody has the name":     {[]incus.Instance{away}, []renaming{{away.Name, "penguin"}}},
		"the new one has it":      {[]incus.Instance{away, {Name: "penguin"}}, nil},
		"no name of a container":  {[]incus.Instance{unnamed, {Name: "auberge-create-4"}}, nil},
	} {
		if diff := cmp.Diff(c.want, unfinished(c.all), cmp.AllowUnexported(renaming{})); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

// A container that was started once is not made anew by the next creation,
// although nobody set up its user.
func TestAStartedContainerIsNotAbandoned(t *testing.T) {
	i := incus.Instance{Name: "penguin", Status: "Stopped", Config: map[string]string{setUpKey: "no"}}
	if !isAbandoned(i) {
		t.Error("a container that was never of use is kept")
	}
	given := map[string]string{"security.privileged": "false"}
	want := inUse(i, given)
	if !changes(i.Config, want) || want["security.privileged"] != "false" || len(given) != 1 {
		t.Errorf("a start changes nothing: %v", want)
	}
	i.Config = want
	if isAbandoned(i) {
		t.Error("a container that was started would be deleted")
	}
	if again := inUse(i, nil); changes(i.Config, again) {
		t.Errorf("the second start changes %v", again)
	}
}
