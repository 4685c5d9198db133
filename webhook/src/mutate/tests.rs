//! Pods and definitions in, the pod as the patch leaves it out.

use super::*;

/// Applies a patch of `add` operations, as RFC 6902 §4.1 has it.
fn apply(document: &Value, operations: &[Value]) -> Value {
    let mut document = document.clone();
    for operation in operations {
        assert_eq!(operation["op"], "add", "{operation}");
        let path = operation["path"].as_str().unwrap();
        let (parent, key) = path.rsplit_once('/').unwrap();
        let parent = document.pointer_mut(parent).unwrap_or_else(|| panic!("nothing at {parent}: {operation}"));
        match parent {
            Value::Array(array) if key == "-" => array.push(operation["value"].clone()),
            Value::Object(map) => {
                let key = key.replace("~1", "/").replace("~0", "~");
                map.insert(key, operation["value"].clone());
            }
            other => panic!("{other} takes no {operation}"),
        }
    }
    document
}

fn pod(networks: &str, spec: Value) -> Value {
    json!({"metadata": {"annotations": {NETWORKS_ANNOTATION: networks}}, "spec": spec})
}

fn containers(names: &[&str]) -> Value {
    json!({"containers": names.iter().map(|name| json!({"name": name})).collect::<Vec<_>>()})
}

/// Definitions by name, in every namespace but `none`.
fn known(namespace: &str, name: &str) -> Option<Demand> {
    let demand = |resource: &str, selector: &str| Demand {
        resource: (!resource.is_empty()).then(|| resource.to_owned()),
        node_selector: (!selector.is_empty()).then(|| selector.to_owned()),
        inject: true,
    };
    let found = match name {
        "plain" => demand("", ""),
        "blue" => demand("intel.com/blue", ""),
        "red" => demand("intel.com/red", ""),
        "claimed" => Demand { inject: false, ..demand("intel.com/blue", "") },
        "rack" => demand("", "rack=1"),
        "other-rack" => demand("", " rack = 2 "),
        "label" => demand("", "feature.node/sriov"),
        "strange" => demand("", "a=b=c"),
        "nameless" => demand("", "=b"),
        _ => return None,
    };
    (namespace != "none").then_some(found)
}

fn rules() -> Rules {
    Rules { default_namespace: "kube-system".to_owned(), ..Rules::default() }
}

fn changed_by(rules: &Rules, pod: &Value) -> (Value, Vec<String>) {
    let change = change(pod, "default", known, rules).unwrap();
    (apply(pod, &change.operations), change.warnings)
}

fn changed(pod: &Value) -> Value {
    changed_by(&rules(), pod).0
}

fn refused(pod: &Value) -> String {
    let error = change(pod, "default", known, &rules()).unwrap_err();
    assert_eq!(error.code, code::CONFIG);
    error.to_string()
}

#[test]
fn devices_are_counted_and_requested_by_the_first_container() {
    let rows = [
        ("blue", json!({"intel.com/blue": "1"})),
        ("blue,plain,blue,red", json!({"intel.com/blue": "2", "intel.com/red": "1"})),
        (r#"[{"name":"blue"},{"name":"blue","namespace":"other"}]"#, json!({"intel.com/blue": "2"})),
    ];
    for (networks, resources) in rows {
        let pod = changed(&pod(networks, containers(&["a", "b"])));
        let expected = json!([{"name": "a", "resources": {"requests": resources, "limits": resources}}, {"name": "b"}]);
        assert_eq!(pod["spec"], json!({"containers": expected}), "{networks}");
    }
}

#[test]
fn what_needs_nothing_stays_as_it_is() {
    let rows = [
        pod("plain", containers(&["a"])),
        pod("", containers(&["a"])),
        pod("none/blue", containers(&["a"])),
        pod("unknown", containers(&["a"])),
        pod("claimed", containers(&["a"])),
        json!({"metadata": {}, "spec": containers(&["a"])}),
        json!({"metadata": {"annotations": null}, "spec": {}}),
    ];
    for pod in rows {
        let change = change(&pod, "default", known, &rules()).unwrap();
        assert_eq!(change, Change::default(), "{pod}");
    }
}

#[test]
fn a_pod_that_gets_no_networks_gets_no_requests() {
    let mut of_host = pod("blue", containers(&["a"]));
    of_host["spec"]["hostNetwork"] = true.into();
    let mut mirror = pod("blue", containers(&["a"]));
    mirror["metadata"]["annotations"][MIRROR_ANNOTATION] = "1".into();
    let mut opted_out = pod("blue", containers(&["a"]));
    opted_out["metadata"]["annotations"][INJECT_ANNOTATION] = "false".into();
    for pod in [of_host, mirror, opted_out] {
        assert_eq!(changed(&pod), pod);
    }
}

#[test]
fn the_default_network_counts_too() {
    let annotations = json!({DEFAULT_NETWORK_ANNOTATION: "blue", NETWORKS_ANNOTATION: "blue"});
    let pod = changed(&json!({"metadata": {"annotations": annotations}, "spec": containers(&["a"])}));
    assert_eq!(pod["spec"]["containers"][0]["resources"]["requests"], json!({"intel.com/blue": "2"}));
    let found = named(&pod, "default", "kube-system").unwrap();
    let expected = [("kube-system", "blue"), ("default", "blue")];
    assert_eq!(found, expected.map(|(namespace, name)| (namespace.to_owned(), name.to_owned())));
}

#[test]
fn a_container_is_chosen_by_annotation() {
    let with = |name: &str| {
        let mut spec = containers(&["a", "b"]);
        spec["initContainers"] = json!([{"name": "setup"}, {"name": "sidecar", "restartPolicy": "Always"}]);
        let mut pod = pod("blue", spec);
        pod["metadata"]["annotations"][CONTAINER_ANNOTATION] = name.into();
        pod
    };
    let requests = json!({"requests": {"intel.com/blue": "1"}, "limits": {"intel.com/blue": "1"}});
    assert_eq!(changed(&with("b"))["spec"]["containers"], json!([{"name": "a"}, {"name": "b", "resources": requests}]));
    assert_eq!(changed(&with("sidecar"))["spec"]["initContainers"][1]["resources"], requests);
    for none in ["setup", "c", ""] {
        let problem = refused(&with(none));
        assert!(problem.contains(CONTAINER_ANNOTATION) && problem.ends_with("it has a, b, sidecar"), "{problem}");
    }
}

#[test]
fn what_is_already_requested_is_honoured() {
    let blue = |amount: &str| json!({"requests": {"cpu": "1", "intel.com/blue": amount}});
    // What containers a and b and the sidecar request, and what a requests in the end: by fill, add and keep.
    let rows = [
        (["", "", ""], ["2", "2", "2"]),
        (["1", "", ""], ["2", "3", "1"]),
        (["", "1", ""], ["1", "2", ""]),
        (["", "", "1"], ["1", "2", ""]),
        (["2", "", ""], ["2", "4", "2"]),
        (["1k", "", ""], ["1k", "1002", "1k"]),
        (["1", "1", "5"], ["1", "3", "1"]),
        (["18446744073709551615", "1", ""], ["18446744073709551615", "18446744073709551615", "18446744073709551615"]),
    ];
    for (requested, expected) in rows {
        let container = |name: &str, amount: &str| {
            let mut container = json!({"name": name});
            if !amount.is_empty() {
                container["resources"] = blue(amount);
            }
            container
        };
        let mut sidecar = container("s", requested[2]);
        sidecar["restartPolicy"] = "Always".into();
        let initial = json!([{"name": "i", "resources": blue("9")}, sidecar]);
        let spec = json!({
            "containers": [container("a", requested[0]), container("b", requested[1])], "initContainers": initial,
        });
        let pod = pod("blue,blue", spec);
        for (existing, expected) in [Existing::Fill, Existing::Add, Existing::Keep].into_iter().zip(expected) {
            let (changed, _) = changed_by(&Rules { existing, ..rules() }, &pod);
            let a = &changed["spec"]["containers"][0]["resources"];
            let found = a["requests"]["intel.com/blue"].as_str().unwrap_or_default();
            assert_eq!(found, expected, "{requested:?} {existing:?}");
            if found != requested[0] {
                assert_eq!(a["limits"]["intel.com/blue"], found);
                let cpu = if requested[0].is_empty() { Value::Null } else { "1".into() };
                assert_eq!(a["requests"]["cpu"], cpu, "what else is requested stays");
            }
            let others = |pod: &Value| (pod["spec"]["containers"][1].clone(), pod["spec"]["initContainers"].clone());
            assert_eq!(others(&changed), others(&pod), "no other container is changed");
        }
    }
}

#[test]
fn a_second_time_changes_nothing() {
    let once = changed_by(&Rules { pod_info: true, ..rules() }, &pod("blue,rack", containers(&["a", "b"]))).0;
    let again = change(&once, "default", known, &Rules { pod_info: true, ..rules() }).unwrap();
    assert_eq!(again.operations, Vec::<Value>::new());
}

#[test]
fn an_amount_that_is_no_number_of_devices_is_refused() {
    let spec = json!({"containers": [{"name": "a", "resources": {"requests": {"intel.com/blue": "500m"}}}]});
    let problem = refused(&pod("blue", spec));
    assert_eq!(problem, "container a: requests of intel.com/blue: \"500m\" is no whole number of devices");
}

#[test]
fn maps_are_made_where_they_are_absent_and_kept_where_they_are_there() {
    let ours = json!({"intel.com/blue": "1"});
    let rows = [
        (json!({"name": "a"}), json!({"requests": ours, "limits": ours})),
        (json!({"name": "a", "resources": null}), json!({"requests": ours, "limits": ours})),
        (json!({"name": "a", "resources": {}}), json!({"requests": ours, "limits": ours})),
        (json!({"name": "a", "resources": {"requests": null}}), json!({"requests": ours, "limits": ours})),
        (
            json!({"name": "a", "resources": {"limits": {"memory": "1Gi"}}}),
            json!({"limits": {"memory": "1Gi", "intel.com/blue": "1"}, "requests": ours}),
        ),
        (
            json!({"name": "a", "resources": {"claims": [{"name": "gpu"}]}}),
            json!({"claims": [{"name": "gpu"}], "requests": ours, "limits": ours}),
        ),
    ];
    for (container, resources) in rows {
        let pod = changed(&pod("blue", json!({"containers": [container]})));
        assert_eq!(pod["spec"]["containers"][0]["resources"], resources, "{container}");
    }
}

#[test]
fn a_pod_with_claims_is_told_how_not_to_get_both() {
    let mut spec = containers(&["a"]);
    spec["resourceClaims"] = json!([{"name": "nic", "resourceClaimTemplateName": "nic"}]);
    let (changed, warnings) = changed_by(&rules(), &pod("blue", spec.clone()));
    assert_eq!(changed["spec"]["containers"][0]["resources"]["requests"], json!({"intel.com/blue": "1"}));
    let [warning] = &warnings[..] else { panic!("{warnings:?}") };
    assert!(warning.contains("intel.com/blue") && warning.contains(INJECT_ANNOTATION), "{warning}");
    let claimed = pod("claimed", spec);
    assert_eq!(changed_by(&rules(), &claimed), (claimed, Vec::new()));
}

#[test]
fn networks_say_on_which_nodes_they_are() {
    let rows = [
        ("rack", json!(null), json!({"rack": "1"}), 0),
        ("rack,label,rack", json!(null), json!({"rack": "1", "feature.node/sriov": ""}), 0),
        ("rack", json!({"disk": "ssd"}), json!({"disk": "ssd", "rack": "1"}), 0),
        ("rack", json!({"rack": "1"}), json!({"rack": "1"}), 0),
        ("other-rack", json!({"rack": "1"}), json!({"rack": "2"}), 1),
    ];
    for (networks, selector, expected, warned) in rows {
        let mut spec = containers(&["a"]);
        spec["nodeSelector"] = selector.clone();
        let (changed, warnings) = changed_by(&rules(), &pod(networks, spec));
        assert_eq!((&changed["spec"]["nodeSelector"], warnings.len()), (&expected, warned), "{networks} {selector}");
    }
    let rows = [
        (
            "rack,other-rack",
            "network default/other-rack: annotation k8s.v1.cni.cncf.io/nodeSelector: no node has the label rack both as \"2\" and as \"1\", which network default/rack asks for",
        ),
        (
            "strange",
            "network default/strange: annotation k8s.v1.cni.cncf.io/nodeSelector: \"a=b=c\" is neither a label nor label=value",
        ),
        (
            "nameless",
            "network default/nameless: annotation k8s.v1.cni.cncf.io/nodeSelector: \"=b\" is neither a label nor label=value",
        ),
    ];
    for (networks, problem) in rows {
        assert_eq!(refused(&pod(networks, containers(&["a"]))), problem);
    }
}

#[test]
fn a_volume_tells_the_pod_what_it_got() {
    let told = Rules { pod_info: true, ..rules() };
    let (changed, _) = changed_by(&told, &pod("blue", containers(&["a", "b"])));
    let items = json!([
        {"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}},
        {"path": "annotations", "fieldRef": {"fieldPath": "metadata.annotations"}},
    ]);
    assert_eq!(changed["spec"]["volumes"], json!([{"name": "podnetinfo", "downwardAPI": {"items": items}}]));
    let mount = json!({"name": "podnetinfo", "readOnly": true, "mountPath": "/etc/podnetinfo"});
    for container in changed["spec"]["containers"].as_array().unwrap() {
        assert_eq!(container["volumeMounts"], json!([mount]));
        assert_eq!(container["env"], Value::Null);
    }
    let untold = changed_by(&told, &pod("plain,rack", containers(&["a"]))).0;
    assert_eq!(untold["spec"]["volumes"], Value::Null, "nothing was requested");
}

#[test]
fn a_volume_of_the_pods_own_stays() {
    let told = Rules { pod_info: true, ..rules() };
    let own = json!({"name": "podnetinfo", "emptyDir": {}});
    let mounted = json!([{"name": "mine", "mountPath": "/etc/podnetinfo"}]);
    let spec = json!({"containers": [{"name": "a", "volumeMounts": mounted}, {"name": "b"}], "volumes": [own]});
    let (changed, _) = changed_by(&told, &pod("blue", spec));
    assert_eq!(changed["spec"]["volumes"], json!([own]));
    assert_eq!(changed["spec"]["containers"][0]["volumeMounts"], mounted);
    assert_eq!(changed["spec"]["containers"][1]["volumeMounts"].as_array().unwrap().len(), 1);
}

#[test]
fn huge_pages_are_told_where_they_are_asked_for() {
    let told = Rules { pod_info: true, huge_pages: true, ..rules() };
    let pages =
        json!({"requests": {"hugepages-1Gi": "2Gi"}, "limits": {"hugepages-1Gi": "2Gi", "hugepages-2Mi": "4Mi"}});
    let spec = json!({"containers": [{"name": "a", "resources": pages}, {"name": "b"}]});
    let (changed, _) = changed_by(&told, &pod("blue", spec));
    let items = changed["spec"]["volumes"][0]["downwardAPI"]["items"].as_array().unwrap();
    let file = |path: &str, resource: &str| json!({"path": path, "resourceFieldRef": {"containerName": "a", "resource": resource, "divisor": "1Mi"}});
    assert_eq!(
        items[2..],
        [
            file("hugepages_1G_request_a", "requests.hugepages-1Gi"),
            file("hugepages_1G_limit_a", "limits.hugepages-1Gi"),
            file("hugepages_2M_limit_a", "limits.hugepages-2Mi"),
        ]
    );
    let env = |index: usize| changed["spec"]["containers"][index]["env"].clone();
    assert_eq!((env(0), env(1)), (json!([{"name": "CONTAINER_NAME", "value": "a"}]), Value::Null));
}

#[test]
fn a_wrong_annotation_is_refused_in_the_words_of_add() {
    let problem = refused(&pod("[null]", containers(&["a"])));
    assert!(problem.starts_with("annotation k8s.v1.cni.cncf.io/networks: "), "{problem}");
}

fn with_injections(text: &str) -> Rules {
    Rules { injections: Injections::parse(text).unwrap(), ..rules() }
}

const INJECTIONS: &str = r#"{
    "features": {"enableHonorExistingResources": true},
    "user-defined-injections": {
        "rdma": {"op": "add", "path": "/metadata/annotations", "value": {"example.com/rdma": "on", "a": "b"}},
        "other": {"op": "add", "path": "/metadata/annotations", "value": {"example.com/other": "on"}}
    }
}"#;

#[test]
fn a_pod_that_gets_devices_gets_what_its_labels_stand_for() {
    let rules = with_injections(INJECTIONS);
    let labelled = |networks: &str, label: &str| {
        let mut pod = pod(networks, containers(&["main"]));
        pod["metadata"]["labels"] = json!({"rdma": label});
        pod
    };
    let annotations = |pod: &Value| changed_by(&rules, pod).0["metadata"]["annotations"].clone();
    let networks = json!({NETWORKS_ANNOTATION: "blue"});
    assert_eq!(
        annotations(&labelled("blue", "true")),
        json!({NETWORKS_ANNOTATION: "blue", "example.com/rdma": "on", "a": "b"})
    );
    assert_eq!(annotations(&labelled("blue", "false")), networks, "it is switched off");
    assert_eq!(annotations(&pod("blue", containers(&["main"]))), networks, "it has no label");
    assert_eq!(annotations(&labelled("plain", "true")), json!({NETWORKS_ANNOTATION: "plain"}), "it gets no device");
    let mut own = labelled("blue", "true");
    own["metadata"]["annotations"]["a"] = "its own".into();
    assert_eq!(annotations(&own)["a"], "its own");
}

#[test]
fn injections_are_annotations_and_name_no_networks() {
    let of = |op: &str, path: &str, key: &str| {
        json!({"user-defined-injections": {"x": {"op": op, "path": path, "value": {key: "v"}}}}).to_string()
    };
    for (text, problem) in [
        (of("remove", "/metadata/annotations", "k"), "x: \"remove\""),
        (of("add", "/spec", "k"), "\"/spec\""),
        (of("add", "/metadata/annotations", NETWORKS_ANNOTATION), "would name networks"),
        ("[".to_owned(), "EOF"),
    ] {
        let error = Injections::parse(&text).unwrap_err();
        assert!(error.contains(problem), "{error}");
    }
    for nothing in ["", "{}"] {
        assert!(Injections::parse(nothing).is_ok());
    }
}
