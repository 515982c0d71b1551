package tremplin

import (
	"os"
	"strings"
	"testing"
)

// Only the shipped image's templates are filled in: another's would be files
// that root of the VM writes where the image wants them.
func TestAnImagesTemplatesAreDropped(t *testing.T) {
	s := &Server{cfg: Config{IncusDir: t.TempDir()}}
	dir := s.cfg.containerDir("auberge-create-1")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	path := dir + "/metadata.yaml"
	const given = "architecture: x86_64\nproperties: {os: Debian}\ntemplates:\n  /etc/motd: {when: [start], template: x.tpl}\n"
	if err := os.WriteFile(path, []byte(given), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.dropTemplates("auberge-create-1"); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err != nil || strings.Contains(string(data), "motd") || !strings.Contains(string(data), "Debian") || !strings.Contains(string(data), "x86_64") {
		t.Errorf("%s, %v", data, err)
	}
	os.WriteFile(path, []byte("[1]"), 0o600)
	if s.dropTemplates("auberge-create-1") == nil {
		t.Error("no metadata was taken")
	}
}
