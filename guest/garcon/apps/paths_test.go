package apps_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/auberge-vm/auberge/guest/garcon/apps"
)

func TestPathsFrom(t *testing.T) {
	for name, c := range map[string]struct {
		env  map[string]string
		want apps.Paths
	}{
		"nothing": {nil, apps.Paths{Home: "/h", ConfigHome: "/h/.config", DataDirs: []string{"/h/.local/share", "/usr/local/share", "/usr/share"}}},
		"all": {map[string]string{"XDG_DATA_HOME": "/d", "XDG_CONFIG_HOME": "/c/", "XDG_DATA_DIRS": "/usr/share/:rel::/flat/share:/usr/share"},
			apps.Paths{Home: "/h", ConfigHome: "/c", DataDirs: []string{"/d", "/usr/share", "/flat/share"}}},
		"relative": {map[string]string{"XDG_DATA_HOME": "d", "XDG_CONFIG_HOME": "c", "XDG_DATA_DIRS": "/x"},
			apps.Paths{Home: "/h", ConfigHome: "/h/.config", DataDirs: []string{"/h/.local/share", "/x"}}},
	} {
		if diff := cmp.Diff(c.want, apps.PathsFrom("/h", func(k string) string { return c.env[k] })); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
	many := apps.PathsFrom("/h", func(k string) string {
		if k == "XDG_DATA_DIRS" {
			list := "/a"
			for i := range 1000 {
				list += ":/x" + strings.Repeat("y", i)
			}
			return list
		}
		return ""
	})
	if len(many.DataDirs) != 64 {
		t.Errorf("%d directories of data", len(many.DataDirs))
	}
}
