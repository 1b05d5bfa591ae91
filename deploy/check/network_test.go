package check

import (
	"cmp"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// selects says whether a selector takes the pods of the Deployment.
func selects(t *testing.T, s *metav1.LabelSelector, r *rendering) bool {
	t.Helper()
	selector, err := metav1.LabelSelectorAsSelector(s)
	if err != nil {
		t.Fatal(err)
	}
	return !selector.Empty() && selector.Matches(labels.Set(r.deployments[0].Spec.Template.Labels))
}

func TestSelectorsTakeThePods(t *testing.T) {
	each(t, func(t *testing.T, r *rendering, _ string) {
		d := r.deployments[0]
		if !selects(t, d.Spec.Selector, r) {
			t.Error("the Deployment does not select its own pods")
		}
		for _, s := range r.services {
			if !selects(t, &metav1.LabelSelector{MatchLabels: s.Spec.Selector}, r) {
				t.Errorf("the Service %s selects other pods", s.Name)
			}
		}
		if !selects(t, r.disruption[0].Spec.Selector, r) {
			t.Error("the PodDisruptionBudget selects other pods")
		}
		for _, n := range r.networks {
			if !selects(t, &n.Spec.PodSelector, r) {
				t.Errorf("the NetworkPolicy %s selects other pods", n.Name)
			}
		}
		for _, c := range d.Spec.Template.Spec.TopologySpreadConstraints {
			if !selects(t, c.LabelSelector, r) {
				t.Errorf("what is spread over %s is other pods", c.TopologyKey)
			}
		}
	})
}

// TestPortsAgree: from the configuration by way of the container to Services,
// policies and monitoring.
func TestPortsAgree(t *testing.T) {
	each(t, func(t *testing.T, r *rendering, _ string) {
		_, s := config(t, r)
		ports := map[string]int32{}
		for _, p := range r.deployments[0].Spec.Template.Spec.Containers[0].Ports {
			ports[p.Name] = p.ContainerPort
		}
		for name, listen := range map[string]string{"grpc": s.GRPC.Listen, "https": s.HTTP.Listen, "ops": s.Ops.Listen} {
			// All addresses: what listens on loopback cannot be reached in a pod.
			if want := ":" + strconv.Itoa(int(ports[name])); listen != want {
				t.Errorf("%s: the service listens on %q, the container names %q", name, listen, want)
			}
		}
		for _, service := range r.services {
			for _, p := range service.Spec.Ports {
				if ports[p.TargetPort.StrVal] == 0 {
					t.Errorf("the Service %s leads to %v, which is no port of the container", service.Name, p.TargetPort)
				}
			}
			// Callers balance by themselves, and monitoring asks each replica.
			if headless := service.Spec.ClusterIP == "None"; headless != (service.Name != "bulla-jwks") {
				t.Errorf("the Service %s: headless is %t", service.Name, headless)
			}
		}
		m := r.monitors[0].Spec
		alerts := read(t, "../prometheus/alerts.yaml")
		found := 0
		for _, service := range r.services {
			selector, err := metav1.LabelSelectorAsSelector(&m.Selector)
			if err != nil {
				t.Fatal(err)
			}
			if selector.Matches(labels.Set(service.Labels)) {
				found++
				if len(m.Endpoints) != 1 || m.Endpoints[0].Port != service.Spec.Ports[0].Name || m.Endpoints[0].Path != "/metrics" {
					t.Errorf("monitoring asks for %v of the Service %s", m.Endpoints, service.Name)
				}
				// The operator takes the Service's name where no label says another.
				job := cmp.Or(service.Labels[m.JobLabel], service.Name)
				if !strings.Contains(alerts, "up{job="+strconv.Quote(job)+"}") {
					t.Errorf("what is collected has the job %q, of which no alert asks whether it is up", job)
				}
			}
		}
		if found != 1 {
			t.Errorf("monitoring looks at %d Services, want 1", found)
		}
	})
}

// TestTheNetworkIsClosedButForWhatIsNeeded asks the policies as a cluster would.
func TestTheNetworkIsClosedButForWhatIsNeeded(t *testing.T) {
	each(t, func(t *testing.T, r *rendering, _ string) {
		closed := map[networkingv1.PolicyType]bool{}
		for _, n := range r.networks {
			for _, kind := range n.Spec.PolicyTypes {
				closed[kind] = true
			}
		}
		if !closed[networkingv1.PolicyTypeIngress] || !closed[networkingv1.PolicyTypeEgress] {
			t.Fatalf("what no policy allows is open: %v", closed)
		}
		monitoring, ingress := map[string]string{"kubernetes.io/metadata.name": "monitoring"}, map[string]string{"kubernetes.io/metadata.name": "ingress-nginx"}
		for _, tt := range []struct {
			from map[string]string
			port string
			want bool
		}{
			{map[string]string{"bulla/caller": "true"}, "grpc", true},
			{map[string]string{"bulla/caller": "true"}, "ops", false},
			{map[string]string{"bulla/caller": "false"}, "grpc", false},
			{map[string]string{}, "grpc", false},
			{ingress, "https", true}, {ingress, "grpc", false}, {ingress, "ops", false},
			{monitoring, "ops", true}, {monitoring, "grpc", false},
			{map[string]string{}, "ops", false},
		} {
			if got := comesIn(t, r, tt.from, tt.port); got != tt.want {
				t.Errorf("from a namespace labeled %v to %s: %t, want %t", tt.from, tt.port, got, tt.want)
			}
		}
		for _, tt := range []struct {
			to   string
			port int32
			want bool
		}{
			{"93.184.215.14", 443, true}, {"2606:2800::1", 443, true},
			{"93.184.215.14", 80, false}, {"93.184.215.14", 22, false},
			{"169.254.169.254", 443, false}, {"169.254.169.254", 80, false}, // the cloud's metadata
			{"10.96.0.1", 443, false}, {"192.168.1.1", 443, false}, {"172.20.0.1", 443, false}, // the cluster's API
			{"100.64.0.1", 443, false}, {"127.0.0.1", 443, false}, {"fd00::1", 443, false}, {"fe80::1", 443, false},
			{"10.20.30.5", 5432, true}, {"10.20.30.5", 443, false},
		} {
			if got := goesOut(t, r, netip.MustParseAddr(tt.to), tt.port); got != tt.want {
				t.Errorf("to %s port %d: %t, want %t", tt.to, tt.port, got, tt.want)
			}
		}
		if !resolves(r) {
			t.Error("no policy allows DNS, by UDP and TCP")
		}
	})
}

// comesIn says whether a policy lets a namespace's pods reach a port.
func comesIn(t *testing.T, r *rendering, namespace map[string]string, port string) bool {
	t.Helper()
	for _, n := range r.networks {
		for _, rule := range n.Spec.Ingress {
			if !slices.ContainsFunc(rule.Ports, func(p networkingv1.NetworkPolicyPort) bool { return p.Port.StrVal == port }) && len(rule.Ports) > 0 {
				continue
			}
			if len(rule.From) == 0 {
				return true
			}
			for _, peer := range rule.From {
				if peer.IPBlock != nil || peer.NamespaceSelector == nil || peer.PodSelector != nil {
					t.Fatalf("the policy %s has a peer that this test does not understand", n.Name)
				}
				selector, err := metav1.LabelSelectorAsSelector(peer.NamespaceSelector)
				if err != nil {
					t.Fatal(err)
				}
				if selector.Matches(labels.Set(namespace)) {
					return true
				}
			}
		}
	}
	return false
}

// goesOut says whether a policy lets the pods reach an address.
func goesOut(t *testing.T, r *rendering, to netip.Addr, port int32) bool {
	t.Helper()
	for _, n := range r.networks {
		for _, rule := range n.Spec.Egress {
			if !slices.ContainsFunc(rule.Ports, func(p networkingv1.NetworkPolicyPort) bool { return p.Port.IntVal == port }) && len(rule.Ports) > 0 {
				continue
			}
			if len(rule.To) == 0 {
				return true
			}
			for _, peer := range rule.To {
				if peer.IPBlock == nil {
					continue // pods, for which there is resolves
				}
				inside := func(cidr string) bool { return netip.MustParsePrefix(cidr).Contains(to) }
				if inside(peer.IPBlock.CIDR) && !slices.ContainsFunc(peer.IPBlock.Except, inside) {
					return true
				}
			}
		}
	}
	return false
}

// resolves says whether the pods can ask the cluster's DNS.
func resolves(r *rendering) bool {
	for _, n := range r.networks {
		for _, rule := range n.Spec.Egress {
			var protocols []string
			for _, p := range rule.Ports {
				if p.Port.IntVal == 53 && p.Protocol != nil {
					protocols = append(protocols, string(*p.Protocol))
				}
			}
			slices.Sort(protocols)
			if strings.Join(protocols, " ") != "TCP UDP" || len(rule.To) != 1 {
				continue
			}
			// Exactly the DNS: a label too many here, and no name is found.
			if to := rule.To[0]; to.PodSelector != nil && to.NamespaceSelector != nil && to.PodSelector.MatchLabels["k8s-app"] == "kube-dns" && len(to.PodSelector.MatchLabels) == 1 {
				return true
			}
		}
	}
	return false
}
