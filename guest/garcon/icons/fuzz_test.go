package icons

import (
	"os"
	"testing"
)

func FuzzTheme(f *testing.F) {
	f.Add([]byte("[Icon Theme]\nInherits=a,b\nDirectories=x,y\n[x]\nSize=16\nType=Fixed\n[y]\nSize=48\nScale=2\nMinSize=1\nMaxSize=512\nType=Scalable\n"))
	if data, err := os.ReadFile("/usr/share/icons/hicolor/index.theme"); err == nil {
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		theme, err := parseTheme(data)
		if err != nil {
			return
		}
		if len(theme.dirs) > maxDirs || len(theme.inherits) > maxInherit {
			t.Fatal("more than there may be")
		}
		for _, d := range theme.dirs {
			if !local(d.name) || d.size < 1 || d.scale < 1 {
				t.Errorf("a directory %+v", d)
			}
			d.matches(48, 1)
			if d.distance(48, 1) < 0 {
				t.Errorf("%+v has a distance below 0", d)
			}
		}
	})
}
