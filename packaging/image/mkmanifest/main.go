// Command mkmanifest writes the manifest of a guest image, or checks an image
// against the one it has.
//
//	mkmanifest -facts FILE -packages FILE -container-packages FILE
//		-features LIST -key KEY -base-key KEY -container-key KEY DIR
//	mkmanifest -check DIR
//
// FILEs are those of base.sh and container.sh: facts has lines name=value, packages
// has lines of name, version and architecture with tabs between.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	image "github.com/auberge-vm/auberge/packaging/image"
)

func main() {
	log.SetFlags(0)
	log.SetPrefix("mkmanifest: ")
	check := flag.Bool("check", false, "only check DIR against its manifest")
	facts := flag.String("facts", "", "the facts of the base")
	packages := flag.String("packages", "", "the packages of the base")
	containerPackages := flag.String("container-packages", "", "the packages of the containers' root")
	key := flag.String("key", "", "key of the image")
	baseKey := flag.String("base-key", "", "key of the base")
	containerKey := flag.String("container-key", "", "key of the containers' root")
	features := flag.String("features", "", "what the image can do, separated by commas")
	flag.Parse()
	if flag.NArg() != 1 {
		log.Fatal("needs one image directory")
	}
	dir := flag.Arg(0)

	var err error
	if *check {
		err = verify(dir)
	} else {
		err = create(dir, *facts, *packages, *containerPackages,
			image.Manifest{Features: strings.FieldsFunc(*features, func(c rune) bool { return c == ',' }), Key: *key, BaseKey: *baseKey, ContainerKey: *containerKey})
	}
	if err != nil {
		log.Fatal(err)
	}
}

func verify(dir string) error {
	m, err := image.Read(dir)
	if err != nil {
		return err
	}
	return m.Check(dir)
}

func create(dir, factsFile, packagesFile, containerPackagesFile string, m image.Manifest) (err error) {
	m.Format = image.Format
	if err := addFacts(&m, factsFile); err != nil {
		return err
	}
	if m.Packages, err = readPackages(packagesFile); err != nil {
		return err
	}
	if m.ContainerPackages, err = readPackages(containerPackagesFile); err != nil {
		return err
	}
	if err := m.AddFiles(dir, image.KernelFile, image.InitramfsFile, image.RootFile, image.ToolsFile); err != nil {
		return err
	}
	data, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, image.ManifestFile), append(data, '\n'), 0o644)
}

func addFacts(m *image.Manifest, file string) error {
	data, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	facts := map[string]string{}
	for line := range strings.Lines(string(data)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		facts[name] = value
	}
	for name, field := range map[string]*string{
		"suite":          &m.Suite,
		"architecture":   &m.Architecture,
		"kernel_release": &m.KernelRelease,
	} {
		if *field = facts[name]; *field == "" {
			return fmt.Errorf("%s: no %s", file, name)
		}
	}
	created, err := strconv.ParseInt(facts["created"], 10, 64)
	if err != nil {
		return fmt.Errorf("%s: created: %w", file, err)
	}
	m.Created = time.Unix(created, 0).UTC()
	return nil
}

func readPackages(file string) ([]image.Package, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var packages []image.Package
	for line := range strings.Lines(string(data)) {
		fields := strings.Split(strings.TrimSuffix(line, "\n"), "\t")
		if len(fields) != 3 || fields[0] == "" || fields[1] == "" {
			return nil, fmt.Errorf("%s: %q is not a name, version and architecture", file, line)
		}
		packages = append(packages, image.Package{Name: fields[0], Version: fields[1], Architecture: fields[2]})
	}
	if len(packages) == 0 {
		return nil, fmt.Errorf("%s: no packages", file)
	}
	return packages, nil
}
